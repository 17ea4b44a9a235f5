//! Where and how models compute: chosen once by the user, never asked for in a model file.

use std::sync::atomic::{AtomicU8, Ordering};

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};

/// Threads for the CPU kernels of one model, or of one caller. [`Runtime::with_threads`] gives a model its own;
/// [`install`](ThreadPool::install) gives them to all that one thread runs.
pub use crate::kernels::pool::Pool as ThreadPool;
use crate::{Error, Result};

/// The environment variable that turns the CPU kernels `on` (the default) or `off`: [`Runtime::set_kernels`] without
/// a line of code.
pub const KERNELS_VARIABLE: &str = "FAUNA_KERNELS";

/// Whether the CPU kernels compute, for the whole process: one of the four below.
static KERNELS: AtomicU8 = AtomicU8::new(UNREAD);

/// Neither set nor read from the environment yet.
const UNREAD: u8 = 0;
const ON: u8 = 1;
const OFF: u8 = 2;
/// The environment variable holds neither `on` nor `off`: the kernels compute, and nothing opens.
const UNKNOWN: u8 = 3;

/// The number type of dense weights and of the products they enter.
///
/// On the CPU activations are always float32. [`F32`](Precision::F32) reads half-precision weights in place and
/// widens them exactly; [`Bf16`](Precision::Bf16) rounds both sides of every product to bfloat16 and accumulates in
/// float32. On a GPU the whole computation runs in this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floating point; what parity is measured in.
    #[default]
    F32,
    /// bfloat16: the exponent of float32 with 8 bits of fraction.
    Bf16,
    /// IEEE half precision. On the CPU it computes as [`F32`](Precision::F32) over half-precision weights.
    F16,
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "float16" | "fp16" => Ok(Self::F16),
            other => Err(Error::input(format!("no dtype \"{other}\"")).hint("one of f32, bf16, f16")),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// Device, number type, weight format and seed of everything opened with it.
///
/// ```
/// use fauna_shared::runtime::{Precision, Runtime};
/// let runtime = Runtime::cpu().with_precision(Precision::Bf16);
/// assert!(runtime.device().is_cpu());
/// ```
#[derive(Debug, Clone)]
pub struct Runtime {
    device: Device,
    precision: Precision,
    quantize: Option<GgmlDType>,
    dequantize: bool,
    threads: Option<ThreadPool>,
}

impl Default for Runtime {
    fn default() -> Self {
        Self::cpu()
    }
}

impl Runtime {
    /// Float32 on the CPU, weights as the file stores them.
    pub fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            precision: Precision::F32,
            quantize: None,
            dequantize: false,
            threads: None,
        }
    }

    /// Float32 on the device called `name`: `cpu`, `cuda`, `cuda:1`, `metal`, or `auto` (the first GPU this build
    /// and machine have, else the CPU).
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if this build or this machine has no such device; those of
    /// [`kernels`](Runtime::kernels).
    pub fn on(name: &str) -> Result<Self> {
        Self::kernels()?;
        let (kind, ordinal) = match name.split_once(':') {
            None => (name, 0),
            Some((kind, number)) => {
                let ordinal = number
                    .parse()
                    .map_err(|_| Error::input(format!("no device \"{name}\"")).hint("like cuda:0"))?;
                (kind, ordinal)
            }
        };
        let device = match kind {
            "cpu" => Device::Cpu,
            "cuda" => Device::new_cuda(ordinal).map_err(|e| no_device(name, e))?,
            "metal" => Device::new_metal(ordinal).map_err(|e| no_device(name, e))?,
            "auto" => Device::new_cuda(0).or_else(|_| Device::new_metal(0)).unwrap_or(Device::Cpu),
            _ => {
                return Err(Error::input(format!("no device \"{name}\""))
                    .hint("one of cpu, cuda, cuda:N, metal, auto"));
            }
        };
        Ok(Self { device, ..Self::cpu() })
    }

    /// The same with another number type.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same with every large matrix stored in blocks of `kind` when it is loaded.
    pub fn with_quantize(self, kind: Option<GgmlDType>) -> Self {
        Self { quantize: kind, ..self }
    }

    /// The same with block-quantised files widened to float32 when they are loaded (slower, larger, exact).
    pub fn with_dequantize(self, dequantize: bool) -> Self {
        Self { dequantize, ..self }
    }

    /// The same with `threads` for the CPU kernels of the models that [`Zoo::open`](crate::zoo::Zoo::open) opens with
    /// it or a clone of it: they share these threads with each other and with no other model. The threads end when the
    /// last of the models and the runtimes is dropped. `None` is the pool of the process.
    ///
    /// ```
    /// use fauna_shared::runtime::{Runtime, ThreadPool};
    /// let runtime = Runtime::cpu().with_threads(Some(ThreadPool::new(4)));
    /// assert_eq!(runtime.threads().map(ThreadPool::threads), Some(4));
    /// ```
    pub fn with_threads(self, threads: Option<ThreadPool>) -> Self {
        Self { threads, ..self }
    }

    /// The threads of its models, where they are not those of the process.
    pub fn threads(&self) -> Option<&ThreadPool> {
        self.threads.as_ref()
    }

    /// How many threads the CPU kernels use, for the whole process; `None` is one per core. Models opened
    /// [with threads of their own](Runtime::with_threads) keep theirs.
    pub fn set_threads(threads: Option<usize>) {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        crate::kernels::pool::set_threads(threads.unwrap_or_else(cores).max(1));
    }

    /// Whether fauna's own kernels compute on the CPU, for the whole process; they do unless the environment says
    /// `FAUNA_KERNELS=off`. Without them the CPU runs what a GPU runs: weights are kept as candle tensors or in
    /// candle's quantised form, and candle's operations compute, in float32 whatever the
    /// [`precision`](Runtime::precision). It is several times slower and takes more memory; it is there to check the
    /// path of other devices on a machine that has none.
    ///
    /// To be set before models are opened: one that was opened with the other setting computes the same, but keeps its
    /// weights as that setting stores them. A setting made here counts more than the environment's.
    pub fn set_kernels(kernels: bool) {
        KERNELS.store(if kernels { ON } else { OFF }, Ordering::Relaxed);
    }

    /// Whether fauna's own kernels compute on the CPU; [`set_kernels`](Runtime::set_kernels) says more.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if nothing was set and `FAUNA_KERNELS` is neither `on` nor `off`. Opening a
    /// model reports the same.
    pub fn kernels() -> Result<bool> {
        match kernels_setting() {
            UNKNOWN => Err(Error::input(format!("{KERNELS_VARIABLE} is neither \"on\" nor \"off\"")).hint(
                "on: the CPU kernels compute, which is the default; off: candle's operations, as on a GPU",
            )),
            setting => Ok(setting == ON),
        }
    }

    /// The device tensors live on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The number type of dense weights.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The block format large matrices are brought to at load, if any.
    pub fn quantize(&self) -> Option<GgmlDType> {
        self.quantize
    }

    /// Whether block-quantised files are widened at load.
    pub fn dequantize(&self) -> bool {
        self.dequantize
    }

    /// The type of activations: float32 on the CPU, the chosen precision elsewhere.
    pub fn activations(&self) -> DType {
        match (self.device.is_cpu(), self.precision) {
            (true, _) | (_, Precision::F32) => DType::F32,
            (_, Precision::Bf16) => DType::BF16,
            (_, Precision::F16) => DType::F16,
        }
    }
}

fn kernels_setting() -> u8 {
    match KERNELS.load(Ordering::Relaxed) {
        UNREAD => {
            let read = match std::env::var_os(KERNELS_VARIABLE) {
                None => ON,
                Some(value) if value == "on" => ON,
                Some(value) if value == "off" => OFF,
                Some(_) => UNKNOWN,
            };
            // What was set meanwhile stays.
            match KERNELS.compare_exchange(UNREAD, read, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => read,
                Err(set) => set,
            }
        }
        setting => setting,
    }
}

/// Whether fauna's own kernels compute on `device`, and weights are kept for them: the one place that is asked. What
/// needs numbers in the CPU's memory for another reason asks the device itself.
pub(crate) fn kernels_serve(device: &Device) -> bool {
    device.is_cpu() && kernels_setting() != OFF
}

/// [`kernels_serve`] of the device and the type of `x`: float32.
pub(crate) fn kernels_take(x: &Tensor) -> bool {
    x.dtype() == DType::F32 && kernels_serve(x.device())
}

fn no_device(name: &str, source: candle_core::Error) -> Error {
    Error::unsupported(format!("no device \"{name}\" here: {source}"))
        .hint("this build may lack the feature: cargo build --features cuda (or metal)")
        .caused_by(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_device_is_an_error_that_lists_the_known() {
        let error = Runtime::on("tpu").unwrap_err().to_string();
        assert!(error.contains("\"tpu\"") && error.contains("cuda:N"), "{error}");
    }

    #[test]
    fn a_device_that_is_not_built_in_is_an_error() {
        if cfg!(not(feature = "metal")) {
            assert_eq!(Runtime::on("metal").unwrap_err().kind(), crate::ErrorKind::Unsupported);
        }
    }
}
