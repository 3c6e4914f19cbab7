"""From a source to tokens: reading, checking, splitting over clients, tokenizing."""
