//! The verbs, one module each: its `Args`, and `run(args, context)`.

pub mod bench;
pub mod compare;
pub mod completions;
pub mod embed;
pub mod info;
pub mod list;
pub mod parity;
pub mod pull;
pub mod quantize;
#[cfg(feature = "vision")]
pub mod search;
#[cfg(feature = "builtin")]
pub mod tour;
