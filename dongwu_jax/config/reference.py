"""The page docs/configuration.md, written from the settings themselves.

Example:
    python -m dongwu_jax.config.reference > docs/configuration.md
"""

import argparse
import re

from dongwu_jax.config.settings import Setting, SettingsOfSection, either, sections

_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m dongwu_jax.config.reference > docs/configuration.md`.
     To change it, change the descriptions in dongwu_jax/config. -->

Every setting of a run. `python -m dongwu_jax.train --help-config` prints the same.

## How a run is described

A YAML file names what differs from the defaults, by section:

```yaml
# run.yaml
base: configs/models/7b.yaml
model:
  max_position_embeddings: 16384
  rope_scaling: {type: yarn, factor: 4}
data:
  sequence_length: 16384
  blend:
    - {prefix: /data/news_text_document, weight: 0.7}
    - {prefix: /data/reports_text_document, weight: 0.3}
training:
  global_batch_size: 512
```

**Base files.** `base:` names another YAML file, by a path from the folder of the file that names \
it. It is read first, after its own base. What the file says then wins, setting by setting; lists \
are replaced whole.

**The command line** wins over files. A value is YAML; quote what a shell would take apart:

```
python -m dongwu_jax.train --config run.yaml optimizer.learning_rate=3e-4 \\
    model.rope_scaling.factor=8 model.max_position_embeddings=32768 \\
    training.duration="12B tokens" data.blend='[{prefix: /data/news_text_document, weight: 1}]'
```

**Durations** have a unit: `300` or `300 steps`, `4.8M samples` (sequences), `12B tokens`; K, M, B \
and T are thousands to trillions.

**Sharding rules** are overridden one logical axis at a time, and `null` leaves that axis whole. \
The others keep their [defaults](parallelism.md#the-rules):

```
python -m dongwu_jax.train --config run.yaml 'sharding.rules.embed=[fsdp,context,data,pipe]' \\
    sharding.rules.kv_heads=null
```

**Before it runs.** `--print-config` prints the run that comes out of all this; \
`--explain-sharding --devices 32` prints what each of 32 devices would hold. A misspelled setting \
is refused with the nearest name, an impossible value with the numbers:

```
error: run.yaml: unknown setting model.num_layer; did you mean model.num_layers?
```

Every checkpoint keeps its settings, and the [page of a run](operations.md#the-page-of-a-run) \
shows what was changed at each start.

## Sections

"""


def reference() -> str:
    """The whole page, in Markdown."""
    found = list(sections())
    overview = [
        f"| [`{section.name}`](#{_anchor(section.name)}) | {_cell(section.meaning)} |"
        for section in found
    ]
    table = "\n".join(["| section | |", "|---|---|", *overview])
    return _INTRODUCTION + "\n\n".join([table, *map(_section, found)]) + "\n"


def _section(section: SettingsOfSection) -> str:
    level = "#" * (2 + section.name.count("."))
    rows = [_row(setting) for setting in section.settings]
    head = ["| setting | values | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"{level} {section.name}", "", section.meaning, "", *head, *rows])


def _row(setting: Setting) -> str:
    values = either([f"`{value}`" for value in setting.values])
    default = "required" if setting.default is None else f"`{setting.default}`"
    return f"| `{setting.name}` | {values} | {default} | {_cell(setting.meaning)} |"


def _cell(text: str) -> str:
    """A meaning as a cell of a table, in which other pages are links."""
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text.replace("|", "\\|"))


def _anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return "".join(letter for letter in heading if letter.isalnum() or letter in "_-")


def main() -> None:
    """Print the page."""
    argparse.ArgumentParser(
        prog="python -m dongwu_jax.config.reference",
        description="Print docs/configuration.md, the page of all settings.",
        epilog="example: python -m dongwu_jax.config.reference > docs/configuration.md",
    ).parse_args()
    print(reference(), end="")


if __name__ == "__main__":
    main()
