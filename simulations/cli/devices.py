"""What this machine has to compute with: ``python -m simulations devices``."""

from rich.table import Table

from fedasym.models import device


def devices_table() -> Table:
    """Return a row for every device: what it is, its bfloat16, and what ``auto`` chooses."""
    chosen = device.choose_device("auto")
    table = Table(caption=f"device=auto and dtype=auto choose {chosen} in {device.choose_dtype('auto', chosen)}")
    for name in ("device", "dtype=auto", "attention=auto", "bfloat16", "bfloat16's time / float32's", ""):
        table.add_column(name, overflow="fold")
    for each in device.devices():
        dtype = device.choose_dtype("auto", each)
        native, by = device.native_bfloat16(each)
        table.add_row(
            device.name_of(each),
            dtype,
            device.choose_attention("auto", each, dtype) or "sdpa where the model has it",
            f"{'native' if native else 'not native'}: {by}",
            f"{device.slowdown(each):.1f}",
            "chosen" if each == chosen else "",
        )
    return table
