"""Pages whose commands are run: what a reader types works, in order, from an empty folder."""

import shlex
import sys

import pytest

from samovar import cli
from tests.docs.fences import EXECUTED, fences, run_python


@pytest.fixture(scope="module", params=EXECUTED, ids=lambda page: page.name)
def folder(request, tmp_path_factory):
    """The folder in which all of a page was run."""
    folder = tmp_path_factory.mktemp(request.param.stem)
    namespace: dict = {"__name__": request.param.stem}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        # no processes, whose start takes longer than the work; what they compute is the same, as other tests show
        patch.setattr("samovar.data.loader.num_workers", lambda _: 0)
        patch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
        for fence in fences(request.param, "python", "bash"):
            if fence.language == "python":
                run_python(fence, request.param, namespace)
            for line in fence.lines if fence.language == "bash" else []:
                cli.main(shlex.split(line)[1:])
    return folder


def test_every_command_of_the_page_succeeds_and_its_report_is_there(folder) -> None:
    reports = [*folder.glob("report.html"), *folder.glob("runs/mine/report.html")]
    assert len(reports) == 1
    page = reports[0].read_text(encoding="utf-8")
    assert "lambda_max" in page
