//! Shell completion scripts and the manual page, generated from the definition of the command line.

use clap::CommandFactory;
use clap_complete::Shell;
use fauna::{Error, Result};

use crate::cli::output::Output;
use crate::cli::{Cli, Exit};

/// Arguments of `fauna completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna completions bash > fauna.bash\n  fauna completions zsh > _fauna")]
pub struct Args {
    /// Shell to generate the script for.
    shell: Shell,
}

/// Prints the completion script.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "fauna", &mut script);
    Ok(print(&script)?)
}

/// Prints the manual page: the program, then each command.
pub fn man() -> anyhow::Result<Exit> {
    let mut page = Vec::new();
    let mut program = Cli::command();
    program.build();
    let render = |command: clap::Command, page: &mut Vec<u8>| {
        clap_mangen::Man::new(command).render(page).map_err(|e| Error::io("manual page", "write", e))
    };
    let verbs: Vec<_> = program.get_subcommands().filter(|verb| verb.get_name() != "help").cloned().collect();
    render(program, &mut page)?;
    for verb in verbs {
        let parts: Vec<_> =
            verb.get_subcommands().filter(|part| part.get_name() != "help").cloned().collect();
        render(verb, &mut page)?;
        parts.into_iter().try_for_each(|part| render(part, &mut page))?;
    }
    Ok(print(&page)?)
}

/// Prints the help, in a build without the built-in model.
#[cfg(not(feature = "builtin"))]
pub fn help() -> anyhow::Result<Exit> {
    Ok(print(Cli::command().render_long_help().to_string().as_bytes())?)
}

fn print(bytes: &[u8]) -> Result<Exit> {
    let mut output = Output::stdout();
    output.bytes(bytes)?;
    output.finish()?;
    Ok(Exit::Done)
}
