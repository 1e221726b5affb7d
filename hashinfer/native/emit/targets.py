"""Targets by plain names, and what LLVM has to know of each."""

from dataclasses import dataclass, replace

from hashinfer.errors import InputError


@dataclass(frozen=True, slots=True)
class Target:
    """triple, cpu, features, abi: as LLVM names them. small: optimise for size, with fixed addresses (no system).

    soft: no floating point in the core.
    """

    name: str
    triple: str
    cpu: str
    features: str = ""
    abi: str = ""
    small: bool = False
    soft: bool = False
    about: str = ""


_SOFT = "thumbv7m-unknown-none-eabi"
_X86, _ARM64, _BARE = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "thumbv7em-unknown-none-eabihf"

PRESETS = (
    Target("host", "", "", about="this machine"),
    Target("x86-64-v2", _X86, "x86-64-v2", about="SSE4.2: nearly every PC"),
    Target("x86-64-v3", _X86, "x86-64-v3", about="AVX2 and FMA: Haswell, Zen and later"),
    Target("x86-64-v4", _X86, "x86-64-v4", about="AVX-512: Skylake-SP, Zen 4 and later"),
    Target("aarch64", _ARM64, "generic", about="any 64-bit ARM, Linux"),
    Target("raspberry-pi-zero2", _ARM64, "cortex-a53", about="Pi Zero 2 W, Pi 3; 64-bit Linux"),
    Target("raspberry-pi-4", _ARM64, "cortex-a72", about="Pi 4; 64-bit Linux"),
    Target("raspberry-pi-5", _ARM64, "cortex-a76", about="Pi 5; 64-bit Linux"),
    Target("armv7", "armv7-unknown-linux-gnueabihf", "cortex-a7", "+neon,+vfp4", about="32-bit ARM with NEON, Linux"),
    Target("riscv64", "riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d,+c", "lp64d", about="RV64GC, Linux"),
    Target("wasm32", "wasm32-unknown-wasi", "generic", "+simd128", about="WebAssembly with SIMD"),
    Target(
        "cortex-m3", _SOFT, "cortex-m3", small=True, soft=True, about="Cortex-M3, no FPU and no system: in integers"
    ),
    Target("cortex-m4", _BARE, "cortex-m4", small=True, about="Cortex-M4F, no system"),
    Target("cortex-m7", _BARE, "cortex-m7", small=True, about="Cortex-M7 with FPU, no system"),
)


def resolve(name: str, cpu: str | None = None, features: str | None = None) -> Target:
    """A preset, or a target for an LLVM triple; cpu and features replace its own. Raises InputError for neither."""
    found = next((t for t in PRESETS if t.name == name), None)
    if found is None:
        parts = name.split("-")
        if len(parts) < 3 or not all(parts):
            known = ", ".join(t.name for t in PRESETS)
            raise InputError(f"target {name!r} is unknown; expected an LLVM triple or one of {known}")
        alike = next((t for t in PRESETS if t.triple.split("-")[0] == parts[0]), None)
        bare = "none" in parts[1:3]
        soft = bare and parts[0] in ("thumbv6m", "thumbv7m") and not name.endswith("hf")
        found = Target(name, name, "", abi=alike.abi if alike else "", small=bare, soft=soft)
        if alike is not None:
            found = replace(found, cpu=alike.cpu, features=alike.features)
    if cpu is not None:
        found = replace(found, cpu=cpu)
    if features is not None:
        found = replace(found, features=features)
    return found
