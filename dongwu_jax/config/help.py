"""The text of `--help-config`: every setting with its values, default and meaning."""

from dongwu_jax.config.settings import either, sections


def config_help() -> str:
    """List every setting as `section.field  values; default` with its meaning below."""
    lines: list[str] = []
    for section in sections():
        if lines:
            lines.append("")
        lines.append(f"{section.name}: {section.meaning}")
        for setting in section.settings:
            default = "required" if setting.default is None else f"default {setting.default}"
            lines.append(f"  {setting.name}  {either(setting.values)}; {default}")
            lines.append(f"      {setting.meaning}")
    return "\n".join(lines)
