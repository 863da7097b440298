"""The learning rules of spiking networks by name, one file each; a rule's fields are its options."""

from hybridsnn.learning.rules.base import LearningRule
from hybridsnn.learning.rules.diet import DIET
from hybridsnn.learning.rules.linear import LinearBPTT
from hybridsnn.learning.rules.osstop import OSSTOP
from hybridsnn.learning.rules.ottt import OTTT
from hybridsnn.learning.rules.rate import Rate
from hybridsnn.learning.rules.sltt import SLTT
from hybridsnn.learning.rules.stbp import STBP
from hybridsnn.learning.rules.stdb import STDB
from hybridsnn.learning.rules.stop import StopW, StopWL, StopWT, StopWTL

RULES: dict[str, type[LearningRule]] = {
    "stdb": STDB,
    "linear": LinearBPTT,
    "diet": DIET,
    "stop-w": StopW,
    "stop-wt": StopWT,
    "stop-wl": StopWL,
    "stop-wtl": StopWTL,
    "osstop": OSSTOP,
    "stbp": STBP,
    "ottt": OTTT,
    "sltt": SLTT,
    "rate": Rate,
}
