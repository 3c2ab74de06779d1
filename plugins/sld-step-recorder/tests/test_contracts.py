"""The contract of step hooks, on ``step-recorder``."""

import pytest
import sld_step_recorder

from sldcore.testing import StepHookContract


class TestStepRecorder(StepHookContract):
    """Records go to the default folder, below the current one."""

    (contribution,) = sld_step_recorder.sld_step_hooks()

    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
