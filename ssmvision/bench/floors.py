"""The least time that a GPU needs for a selective scan: memory traffic, exponentials and instruction issue.

A fused scan reads every input once and writes every output once; per channel, step, route and state it takes one
exponential and five instructions forward, one and fifteen backward. Softplus costs an exponential and a logarithm per
channel, step and route, the gate two per channel and step; the same unit computes them all. A route that has to be cut
into segments, because batch x channels x routes do not fill the device, takes its exponentials twice and four more
instructions. The floor of a pass is the largest of the three times, and kernels cannot reach it all at once.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["H200", "Floor", "Rates", "ScanWork", "rates_of", "scan_floor"]

FORWARD_INSTRUCTIONS = 5
BACKWARD_INSTRUCTIONS = 15
SEGMENT_INSTRUCTIONS = 4
# Per multiprocessor and clock, from compute capability 7.5 on.
EXPONENTIALS_PER_CLOCK = 16
INSTRUCTIONS_PER_CLOCK = 128


@dataclass(frozen=True)
class Rates:
    """What a device can do per second.

    Attributes:
        device: its name.
        source: where the figures come from, for the reader of a table.
        memory: bytes, read and written together.
        exponentials: single-precision exponentials or logarithms.
        instructions: single-precision lane instructions.
    """

    device: str
    source: str
    memory: float
    exponentials: float
    instructions: float


H200 = Rates(
    "NVIDIA H200",
    "memory and exponentials measured, instructions 132 SMs x 128 x 1.98 GHz",
    4.28e12,
    4.168e12,
    132 * INSTRUCTIONS_PER_CLOCK * 1.98e9,
)


def rates_of(device: str, multiprocessors: int, clock_hz: float, memory: float) -> Rates:
    """Measured rates where this package has them (H200), else the device's nominal ones.

    Args:
        device: its name as the driver gives it.
        multiprocessors: number of them.
        clock_hz: highest multiprocessor clock.
        memory: nominal bytes per second.
    """
    if device.startswith(H200.device):
        return H200
    ticks = multiprocessors * clock_hz
    source = f"nominal: {multiprocessors} SMs x {clock_hz / 1e9:.2f} GHz, {memory / 1e12:.2f} TB/s"
    return Rates(device, source, memory, ticks * EXPONENTIALS_PER_CLOCK, ticks * INSTRUCTIONS_PER_CLOCK)


@dataclass(frozen=True)
class ScanWork:
    """Size of a scan.

    Attributes:
        batch: images, volumes or sequences.
        positions: of the grid.
        channels: E.
        states: N per channel.
        routes: K.
        gate: whether the result is gated.
        segments: whether the routes have to be cut, see the module.
        rank: of the step sizes where they are computed inside the scan; 0 where they are read from memory.
        element_bytes: of an input or output value.
    """

    batch: int
    positions: int
    channels: int
    states: int
    routes: int
    gate: bool = False
    segments: bool = False
    rank: int = 0
    element_bytes: int = 2


@dataclass(frozen=True)
class Floor:
    """The least microseconds for a pass, and what they are spent on.

    Attributes:
        memory_us: moving inputs and outputs.
        exponentials_us: exponentials and logarithms.
        instructions_us: the recurrence's arithmetic.
    """

    memory_us: float
    exponentials_us: float
    instructions_us: float

    @property
    def us(self) -> float:
        """The largest of the three."""
        return max(self.memory_us, self.exponentials_us, self.instructions_us)

    @property
    def binds(self) -> str:
        """Which of the three it is."""
        times = {
            "memory": self.memory_us,
            "exponentials": self.exponentials_us,
            "instructions": self.instructions_us,
        }
        return max(times, key=lambda name: times[name])


def scan_floor(work: ScanWork, rates: Rates = H200) -> tuple[Floor, Floor]:
    """Floors of the forward and of the backward; a training step takes their sum."""
    step = work.batch * work.positions * work.channels
    steps, states = step * work.routes, step * work.routes * work.states
    parameters = work.batch * work.positions * work.routes * (2 * work.states + work.rank)
    per_route = parameters + (0 if work.rank else steps)
    # Forward: x and the gate in, the result out. Backward: those two and the result's gradient in, two gradients out.
    forward_values = step * (3 if work.gate else 2) + per_route
    backward_values = step * (5 if work.gate else 3) + 2 * per_route
    exponentials = states * (2 if work.segments else 1) + 2 * steps + (2 * step if work.gate else 0)
    more = SEGMENT_INSTRUCTIONS if work.segments else 0

    def floor(values: int, instructions: int) -> Floor:
        return Floor(
            values * work.element_bytes / rates.memory * 1e6,
            exponentials / rates.exponentials * 1e6,
            states * (instructions + more) / rates.instructions * 1e6,
        )

    return floor(forward_values, FORWARD_INSTRUCTIONS), floor(backward_values, BACKWARD_INSTRUCTIONS)
