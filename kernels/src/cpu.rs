//! Detection of the instruction sets of the processor.

use std::sync::OnceLock;

/// An instruction set that the kernels support. Every kernel gives the same results on each, up to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable Rust, for any processor.
    Portable,
    /// NEON of 64-bit ARM, which every such processor has.
    Neon,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and DQ; [`Features`] are the extensions that only some of these have.
    Avx512,
}

/// Extensions that only some AVX-512 processors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// AVX512-BF16: dot products of bfloat16 pairs.
    pub bf16: bool,
    /// AVX512-VNNI: dot products of bytes.
    pub vnni: bool,
}

impl Isa {
    const ALL: [(Isa, &str); 4] =
        [(Isa::Portable, "portable"), (Isa::Neon, "neon"), (Isa::Avx2, "avx2"), (Isa::Avx512, "avx512")];

    /// Whether this processor supports the instruction set.
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

    /// All instruction sets that this processor supports, the slowest first. Tests run every kernel on each.
    pub fn all_available() -> Vec<Isa> {
        Isa::ALL.iter().map(|(isa, _)| *isa).filter(|isa| isa.available()).collect()
    }

    /// Name of the instruction set in `FAUNA_ISA`.
    pub fn name(self) -> &'static str {
        Isa::ALL.iter().find(|(isa, _)| *isa == self).map_or("", |(_, name)| name)
    }
}

/// Returns the instruction set that the kernels use: the best that this processor supports, or the one named by the
/// environment variable `FAUNA_ISA` (`portable`, `neon`, `avx2`, `avx512`; ignored if the processor lacks it).
pub fn isa() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let wanted = std::env::var("FAUNA_ISA").unwrap_or_default();
        let available = Isa::all_available();
        let named = available.iter().find(|isa| isa.name() == wanted);
        *named.or(available.last()).unwrap_or(&Isa::Portable)
    })
}

/// Returns the extensions of [`Isa::Avx512`] that this processor supports; none if it lacks AVX-512.
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
    fn portable_is_always_available_and_so_is_the_selected_one() {
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
