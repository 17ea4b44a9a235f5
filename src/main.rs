//! The command-line program `fauna`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
