//! What this processor can do, found out once.

use std::sync::OnceLock;

/// An instruction set that the kernels are written for. Every kernel gives the same numbers on each, to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust: any processor.
    Portable,
    /// 64-bit ARM's vectors; every such processor has them.
    Neon,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and DQ. What only some of these have is in [`Features`].
    Avx512,
}

/// Instructions that only some AVX-512 processors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// AVX512-BF16: sums of products of bfloat16 pairs.
    pub bf16: bool,
    /// AVX512-VNNI: sums of products of bytes.
    pub vnni: bool,
}

impl Isa {
    const ALL: [(Isa, &str); 4] =
        [(Isa::Portable, "portable"), (Isa::Neon, "neon"), (Isa::Avx2, "avx2"), (Isa::Avx512, "avx512")];

    /// Whether this processor has it.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            Isa::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
        }
    }

    /// All that this processor has, the slowest first. Tests run every kernel on each.
    pub fn all_available() -> Vec<Isa> {
        Isa::ALL.iter().map(|(isa, _)| *isa).filter(|isa| isa.available()).collect()
    }

    /// The name that `FAUNA_ISA` knows it by.
    pub fn name(self) -> &'static str {
        Isa::ALL.iter().find(|(isa, _)| *isa == self).map_or("", |(_, name)| name)
    }
}

/// The instruction set that the kernels use: the best this processor has, or the one that the environment variable
/// `FAUNA_ISA` names (`portable`, `neon`, `avx2`, `avx512`; ignored where the processor lacks it).
pub fn isa() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let wanted = std::env::var("FAUNA_ISA").unwrap_or_default();
        let available = Isa::all_available();
        let named = available.iter().find(|isa| isa.name() == wanted);
        *named.or(available.last()).unwrap_or(&Isa::Portable)
    })
}

/// What this processor has beyond [`Isa::Avx512`]; nothing where it lacks that.
pub fn features() -> Features {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512.available() {
        return Features {
            bf16: is_x86_feature_detected!("avx512bf16"),
            vnni: is_x86_feature_detected!("avx512vnni"),
        };
    }
    Features::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_rust_always_runs_and_the_choice_can_run() {
        assert!(Isa::all_available().contains(&Isa::Portable));
        assert!(isa().available());
    }

    #[test]
    fn every_instruction_set_has_its_own_name() {
        let mut names: Vec<_> = Isa::ALL.iter().map(|(isa, _)| isa.name()).collect();
        names.dedup();
        assert_eq!(names, ["portable", "neon", "avx2", "avx512"]);
    }
}
