//! `fauna list`: the supported model families and their released checkpoints.

use fauna::error::nearest;
use fauna::releases::OwnConfig;
use fauna::{Family, Release, Result};
use serde_json::json;

use crate::cli::output::Output;
use crate::cli::table::Table;
use crate::cli::{Context, Exit};

/// Arguments of `fauna list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna list\n  fauna list musicgen --json\n  fauna list --pocket")]
pub struct Args {
    /// Filter: a modality (text, image, vector, …), a family, or a part of the name of a system or checkpoint.
    filter: Option<String>,
    /// List the built-in models, with what they do and their figures on data that they were not trained on.
    #[cfg(feature = "builtin")]
    #[arg(long, conflicts_with = "filter")]
    pocket: bool,
}

/// Prints the families. Exit status 1 if nothing matches the filter.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    #[cfg(feature = "builtin")]
    if args.pocket {
        return Ok(list_builtin(context)?);
    }
    let filter = args.filter.as_deref().unwrap_or_default().to_lowercase();
    let families = fauna::families();
    let found: Vec<(&Family, Vec<&Release>)> = families
        .iter()
        .map(|family| (*family, releases(family, &filter)))
        .filter(|(family, releases)| is_named(family, &filter) || !releases.is_empty())
        .collect();
    let mut output = Output::stdout();
    if context.globals.json {
        let list: Vec<_> = found.iter().map(|(family, releases)| as_json(family, releases)).collect();
        output.json(&list)?;
    } else {
        print(&found, &mut output)?;
    }
    output.finish()?;
    if found.is_empty() {
        let near = nearest(
            &filter,
            families.iter().flat_map(|f| [f.name].into_iter().chain(f.model_types.iter().copied())),
        );
        let near = if near.is_empty() {
            "see fauna list".into()
        } else {
            format!("similar names: {}", near.join(", "))
        };
        context.say(&format!("no family or checkpoint matches \"{filter}\"; {near}"));
        return Ok(Exit::No);
    }
    Ok(Exit::Done)
}

/// Prints the built-in models.
#[cfg(feature = "builtin")]
fn list_builtin(context: &Context) -> Result<Exit> {
    let models = fauna::builtin::models();
    let mut output = Output::stdout();
    if context.globals.json {
        let list: Vec<_> = models
            .iter()
            .map(|model| {
                json!({
                    "name": model.name, "system": model.system, "does": model.does, "size": model.size(),
                    "full_size_release": model.release, "figures": model.figures(),
                })
            })
            .collect();
        output.json(&list)?;
        return output.finish().map(|()| Exit::Done);
    }
    for (i, model) in models.iter().enumerate() {
        if i > 0 {
            output.line("")?;
        }
        let size = model.size() as f64 / 1e6;
        output.line(format!("{}  {}, {size:.1} MB: {}", model.name, model.system, model.does))?;
        for figure in model.figures() {
            output.line(format!("  {figure}"))?;
        }
        output.line(format!("  of full size: {}", model.release))?;
    }
    output.finish()?;
    Ok(Exit::Done)
}

/// Returns the releases that match the filter: all if it matches the family, else those whose names contain it.
fn releases(family: &'static Family, filter: &str) -> Vec<&'static Release> {
    let has = |name: &str| name.to_lowercase().contains(filter);
    let all = is_named(family, filter);
    family.releases.iter().filter(|release| all || has(release.id) || has(release.system)).collect()
}

fn is_named(family: &Family, filter: &str) -> bool {
    let modalities = family.inputs.iter().chain(family.outputs);
    filter.is_empty()
        || family.name == filter
        || family.model_types.contains(&filter)
        || modalities.map(ToString::to_string).any(|modality| modality == filter)
}

fn modalities(list: &[fauna::Modality]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn print(found: &[(&Family, Vec<&Release>)], output: &mut Output) -> Result<()> {
    for (i, (family, releases)) in found.iter().enumerate() {
        if i > 0 {
            output.line("")?;
        }
        let (reads, writes) = (modalities(family.inputs), modalities(family.outputs));
        output.line(format!("{}  {} -> {}", family.name, reads, writes))?;
        output.line(format!("  {}", family.paper))?;
        let mut table = Table::default();
        for release in releases {
            let config = format!("config {}", OwnConfig::of(release.id).name());
            table.row([release.id, release.system, release.size, release.licence, &config]);
        }
        for line in table.lines() {
            output.line(format!("  {line}"))?;
        }
    }
    Ok(())
}

fn as_json(family: &Family, releases: &[&Release]) -> serde_json::Value {
    let releases: Vec<_> = releases
        .iter()
        .map(|release| {
            let Release { id, system, size, licence } = release;
            let config = OwnConfig::of(id).name();
            json!({"id": id, "system": system, "size": size, "licence": licence, "own_config": config})
        })
        .collect();
    json!({
        "family": family.name,
        "systems": family.systems,
        "paper": family.paper,
        "model_types": family.model_types,
        "architectures": family.architectures,
        "gguf": family.gguf,
        "inputs": family.inputs,
        "outputs": family.outputs,
        "releases": releases,
    })
}
