"""The panel's ES modules as one function body, which is all that Gradio's `js_on_load` can hold.

Gradio hands that text to `new Function`, where neither `import` nor `export` may stand. Serving the modules as files
instead would need their address (a Space, a proxy and `root_path` each change it), would let a browser mix modules of
two versions after an update, and would load them after the first messages have come. So each module becomes a function
that returns what it exports, called in the order of the imports. The modules are written in the small dialect that this
step reads, anything else is an error here; tests import the very same files as true modules.
"""

from __future__ import annotations

import re
from pathlib import Path

IMPORT = re.compile(r'^import \{([^{}]*)\} from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)
LEFT = re.compile(r"^\s*(?:import|export)\b.*$", re.MULTILINE)


def bundle(folder: Path, entry: str) -> str:
    """JavaScript that declares `$modules`, with what `entry` and the modules under it in `folder` export, by name.

    Raises ValueError for imports in a circle and for any form of import or export but `import { a, b as c } from
    "./module.js";` and `export` in front of a function, a class or a constant with a name.
    """
    done: dict[str, str] = {}
    _add(folder, entry, (), done)
    return "\n".join(["const $modules = {};", *done.values()])


def _add(folder: Path, name: str, above: tuple[str, ...], done: dict[str, str]) -> None:
    if name in done:
        return
    if name in above:
        raise ValueError(f"{' imports '.join([*above, name])}: imports may not run in a circle")
    source = (folder / f"{name}.js").read_text(encoding="utf-8")
    imports = IMPORT.findall(source)
    for _, other in imports:
        _add(folder, other, (*above, name), done)
    body = EXPORT.sub("", IMPORT.sub("", source))
    if left := LEFT.search(body):
        raise ValueError(f"{name}.js: the bundle cannot hold {left.group().strip()!r}")
    # A renamed import is written like a renamed property: {a as b} becomes {a: b}.
    taken = [f"const {{{re.sub(r' as ', ': ', what)}}} = $modules.{other};" for what, other in imports]
    given = f"return {{ {', '.join(EXPORT.findall(source))} }};"
    done[name] = "\n".join([f"$modules.{name} = (() => {{", '"use strict";', *taken, body.strip(), given, "})();"])
