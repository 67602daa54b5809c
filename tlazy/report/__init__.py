"""What `tlazy bench` measured, as a web page and as pictures.

A record is the JSON that ``tlazy bench --json`` writes; :func:`load` reads and checks it.
"""

from tlazy.report.files import write_report
from tlazy.report.page import write_html
from tlazy.report.pictures import write_pngs
from tlazy.report.record import check, load

__all__ = ["check", "load", "write_html", "write_pngs", "write_report"]
