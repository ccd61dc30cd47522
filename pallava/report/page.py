"""One HTML file that needs nothing beside it: styles and pictures are inside.

The template of a page is beside the module that makes the page. It extends ``report/page.html.jinja`` and may use the
macros of ``report/blocks.html.jinja``. Every text is escaped, unless its template calls it safe, as it does with plots.
"""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from pallava.report.table import number, percent, share


def render_page(template: str, **values: Any) -> str:
    """Render the template of a page, given by its path in the package, such as ``demo/page.html.jinja``."""
    return _ENVIRONMENT.get_template(template).render(**values)


def _data_url(image: Image.Image, file_format: str, **options: Any) -> str:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


_ENVIRONMENT = Environment(
    loader=PackageLoader("pallava", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"data_url": _data_url, "number": number, "percent": percent, "share": share}
