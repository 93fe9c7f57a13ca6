"""Widgets of the notebook `explore`, for JupyterLab, Notebook 7 and VS Code.

    from erlab.explore import panel, settings
    panel.Panel(settings.Setting(system="D"), settings.Setting(system="E"))

The widgets are core ipywidgets and PNG images; `erlab.explore.settings` computes what they show.
"""

import html
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import ipywidgets as widgets
import pandas as pd

from erlab import paper
from erlab.errors import ErlabError
from erlab.explore import settings as explore
from erlab.explore.settings import Setting
from erlab.figures import style

_KV = (2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 60)  # GiB per GPU
_NONE = ""  # for None, which a widget takes as no selection
_GATEWAY = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # ms
_LINES = ("Solid line", "Dashed line")
_WIDE = widgets.Layout(width="330px")
_STYLE = {"description_width": "120px"}


class Controls(widgets.VBox):
    """Controls of one setting."""

    def __init__(self, title: str, start: Setting, on_change: Callable[[], None]):
        self._start, self._on_change, self._changing = start, on_change, False

        def choice(name: str, options: Sequence, kind=widgets.Dropdown, **more) -> widgets.Widget:
            value = _NONE if getattr(start, name) is None else getattr(start, name)
            values = [v for _, v in options]
            known = [*options] if value in values else [*options, (f"{value}", value)]
            return kind(options=known, value=value, layout=_WIDE, style=_STYLE, **more)

        slider = {"kind": widgets.SelectionSlider, "continuous_update": False}
        self.controls = {
            "paper": choice("paper", [(v, v) for v in paper.SYSTEMS], description="Paper version"),
            "system": choice("system", _systems(start.paper), description="System"),
            "precision": choice("precision", _or("paper's", explore.PRECISIONS), description="Precision"),
            "tensor_parallel": choice("tensor_parallel", _or("paper's", explore.SIZES), description="GPUs per engine"),
            "kv_gib": choice("kv_gib", _or("all left", _KV), description="KV GiB per GPU", **slider),
            "clusterer": choice("clusterer", _or("equal clusters", explore.clusterers()), description="Clusterer"),
            "policy": choice("policy", [(p, p) for p in explore.simulated_policies()], description="Policy"),
            "gateway_ms": choice("gateway_ms", _numbers(_GATEWAY), description="Gateway (ms)", **slider),
        }
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: self._changed(name), names="value")
        self._enable()
        super().__init__([widgets.HTML(title), *self.controls.values()])

    def setting(self, users: int) -> Setting:
        """Return the setting that the controls show, with `users` as its largest load."""
        chosen = {name: control.value for name, control in self.controls.items() if not control.disabled}
        values = {name: None if value == _NONE else value for name, value in chosen.items()}
        reset = {f.name: f.default for f in fields(Setting) if f.name in self.controls}
        return replace(self._start, **reset | values, users=users)

    def _changed(self, name: str) -> None:
        if self._changing:
            return
        self._changing = True  # choosing another paper changes several controls, but is drawn once
        if name == "paper":
            self.controls["system"].options = _systems(self.controls["paper"].value)
        self._enable()
        self._changing = False
        self._on_change()

    def _enable(self) -> None:
        """Disable the options of the router for a baseline."""
        router = paper.SYSTEMS[self.controls["paper"].value][self.controls["system"].value].router
        for name in ("clusterer", "policy", "gateway_ms"):
            self.controls[name].disabled = not router


class Panel(widgets.VBox):
    """Curves of one or two settings, updated by their controls."""

    def __init__(self, first: Setting, second: Setting | None = None):
        loads = sorted({*paper.LOADS, first.users})
        same = dict(layout=_WIDE, style=_STYLE, continuous_update=False)
        self.users = widgets.SelectionSlider(options=loads, value=first.users, description="Users up to", **same)
        self.compare = widgets.Checkbox(value=second is not None, description="Compare with the dashed setting")
        start = second or replace(first, paper="v2", system="E", clusterer=None, policy="nearest")
        self.controls = [Controls(f"<b>{line}</b>", s, self.draw) for line, s in zip(_LINES, (first, start))]
        self.error = widgets.HTML()
        self.image = widgets.Image(format="png", layout=widgets.Layout(max_width="900px", width="100%"))
        self.status, self.table = widgets.HTML(), widgets.HTML()
        for control in (self.users, self.compare):
            control.observe(lambda change: self.draw(), names="value")
        rows = [widgets.HBox([self.users, self.compare], layout=_WRAP), widgets.HBox(self.controls, layout=_WRAP)]
        super().__init__([*rows, self.error, self.image, self.table, self.status])
        self.draw()

    @property
    def settings(self) -> list[Setting]:
        """Settings that the controls show: the solid one, and the dashed one if compared."""
        return [c.setting(self.users.value) for c in self.controls[: 1 + self.compare.value]]

    def draw(self) -> None:
        """Simulate and draw the settings; one that cannot be served gets an error line instead."""
        started, shown, errors = time.perf_counter(), [None, None], []
        self.controls[1].layout.display = "" if self.compare.value else "none"
        for i, controls in enumerate(self.controls[: 1 + self.compare.value]):
            try:
                setting = controls.setting(self.users.value)
                explore.summary(setting)
                shown[i] = setting
            except ErlabError as e:
                errors.append(f"{_LINES[i]}: {e}")
        self.error.value = _error(errors)
        if any(shown):
            self.image.value = style.render(explore.picture(*shown), "png")
            self.table.value = _table(self._numbers(shown))
        for part in (self.image, self.table):
            part.layout.visibility = "visible" if any(shown) else "hidden"
        self.status.value = f"Simulated and drawn in {time.perf_counter() - started:.2f} s."

    def _numbers(self, shown: list[Setting | None]) -> pd.DataFrame:
        table = explore.numbers(*filter(None, shown))
        table.columns = [line for line, setting in zip(_LINES, shown) if setting]
        return table.drop("Concurrent users").reset_index(names=f"At {self.users.value} users")


class Requirements(widgets.VBox):
    """Search for the fewest GPUs for the solid setting of a panel, at first for at most its largest load."""

    def __init__(self, panel: Panel, users: int = 400, ttft_s: float = 2.0, tpot_ms: float = 200.0):
        same = dict(layout=_WIDE, style=_STYLE)
        self.panel = panel
        start = min(users, panel.users.value)
        self.users = widgets.BoundedIntText(value=start, min=1, max=5000, description="Users", **same)
        self.ttft = widgets.FloatText(value=ttft_s, description="p99 TTFT (s)", **same)
        self.tpot = widgets.FloatText(value=tpot_ms, description="p99 TPOT (ms)", **same)
        self.button = widgets.Button(description="Search", button_style="primary")
        self.button.on_click(lambda button: self.search())
        self.answer, self.table = widgets.HTML(), widgets.HTML()
        rows = widgets.HBox([self.users, self.ttft, self.tpot, self.button], layout=_WRAP)
        super().__init__([rows, self.answer, self.table])
        self.search()

    def search(self) -> None:
        """Search and show the result, or an error line."""
        self.table.value = ""
        try:
            setting = self.panel.settings[0]
            table = explore.what_it_takes(setting, self.users.value, self.ttft.value, self.tpot.value)
        except ErlabError as e:
            self.answer.value = _error([str(e)])
            return
        self.table.value = _table(table)
        self.answer.value = f"System {setting.system} as set above: <b>{html.escape(explore.answer(table))}</b>"


_WRAP = widgets.Layout(flex_flow="row wrap")


def _systems(version: str) -> list[tuple[str, str]]:
    return [(f"{name}: {system.title}", name) for name, system in paper.SYSTEMS[version].items()]


def _or(default: str, values: Sequence) -> list[tuple[str, object]]:
    return [(default, _NONE), *_numbers(values)]


def _numbers(values: Sequence) -> list[tuple[str, object]]:
    return [(str(value), value) for value in values]


def _error(lines: Sequence[str]) -> str:
    return "".join(f'<div style="color:#d32f2f"><b>Not served.</b> {html.escape(line)}</div>' for line in lines)


def _table(frame: pd.DataFrame) -> str:
    rows = frame.to_html(index=False, border=0, na_rep="", float_format="{:,.3f}".format)
    for tag in ("<th>", "<td>"):
        rows = rows.replace(tag, f'{tag[:-1]} style="text-align:left; padding-right:16px">')
    return rows
