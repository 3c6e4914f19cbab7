"""The template of a study's page; `fedasym.reports.study.study_page` fills it."""

STUDY_PAGE = """{% extends "layout" %}
{% from "macros" import figures, section %}

{% block body %}
{% if gaps %}
<section class="warning">
<h2>What is missing</h2>
<ul>{% for text in gaps %}<li>{{ text }}</li>{% endfor %}</ul>
</section>
{% endif %}

<h2>What was reached, and at what cost</h2>
{% for sheet in sheets %}
{{ section(sheet) }}
{% endfor %}

<h2>Curves</h2>
{{ figures(curves, wide="") }}

<h2>Who holds what</h2>
{{ figures(partitions, wide=()) }}

{% if tuning %}
<h2>How it was tuned</h2>
{{ section(tuning) }}
{% endif %}

<h2>Run it again</h2>
{% if command %}
<p>All of it:</p>
<pre>{{ command }}</pre>
{% endif %}
<p>One cell a method, its first; the settings below say what the other cells change.</p>
<pre>{{ commands }}</pre>

<h2>Settings</h2>
<p>Seeds {{ seeds | join(", ") }}. Every setting of a cell not listed under “shared by all cells” is below it.</p>
{% for sheet in settings %}
{{ section(sheet, "facts") }}
{% endfor %}

<h2>Versions</h2>
{{ section(versions, "facts") }}
{% endblock %}
"""
