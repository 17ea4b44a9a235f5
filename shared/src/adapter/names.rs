//! The names of tensors in the file of an adapter.

use super::lora::Kind;

/// What every name starts with.
const PREFIX: &str = "base_model.model.";

/// A tensor of the update of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    A,
    B,
    Bias,
    Magnitude,
}

/// What a tensor is, by its name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// Of the update of the module at a path. The kind is that of the name: convolutions are named as linear layers.
    Update(String, Role, Kind),
    /// A tensor of the base model, which it replaces: its name there.
    Saved(String),
    /// A tensor that peft stores beside the trained copy of it, and does not use.
    Original,
    /// Of something that is not implemented.
    Unknown,
}

/// Reads a name.
pub(super) fn parse(name: &str) -> Named {
    let Some(path) = name.strip_prefix(PREFIX) else { return Named::Unknown };
    let parts: Vec<&str> = path.split('.').filter(|part| *part != "base_layer").collect();
    if let Some(at) = parts.iter().position(|part| part.starts_with("lora_")) {
        let module = parts[..at].join(".");
        return match role(&parts[at..]) {
            Some((role, kind)) if !module.is_empty() => Named::Update(module, role, kind),
            _ => Named::Unknown,
        };
    }
    if parts.iter().any(|part| *part == "token_adapter" || part.starts_with("trainable_tokens")) {
        return Named::Unknown;
    }
    if parts.contains(&"original_module") {
        return Named::Original;
    }
    Named::Saved(without_wrapper(parts).join("."))
}

fn role(parts: &[&str]) -> Option<(Role, Kind)> {
    Some(match parts {
        ["lora_A", "weight"] => (Role::A, Kind::Linear),
        ["lora_B", "weight"] => (Role::B, Kind::Linear),
        ["lora_B", "bias"] => (Role::Bias, Kind::Linear),
        ["lora_embedding_A"] => (Role::A, Kind::Embedding),
        ["lora_embedding_B"] => (Role::B, Kind::Embedding),
        ["lora_magnitude_vector"] | ["lora_magnitude_vector", "weight"] => (Role::Magnitude, Kind::Linear),
        _ => return None,
    })
}

/// The path without `modules_to_save.default`, or `modules_to_save` alone.
fn without_wrapper(mut parts: Vec<&str>) -> Vec<&str> {
    if let Some(at) = parts.iter().position(|part| *part == "modules_to_save") {
        let named = parts.get(at + 1) == Some(&"default") && parts.len() > at + 2;
        parts.drain(at..at + 1 + usize::from(named));
    }
    parts
}

/// The name of a tensor of the update of `module`.
pub(super) fn of_update(module: &str, role: Role, kind: Kind) -> String {
    let end = match (role, kind) {
        (Role::A, Kind::Embedding) => "lora_embedding_A",
        (Role::B, Kind::Embedding) => "lora_embedding_B",
        (Role::A, _) => "lora_A.weight",
        (Role::B, _) => "lora_B.weight",
        (Role::Bias, _) => "lora_B.bias",
        (Role::Magnitude, _) => "lora_magnitude_vector",
    };
    format!("{PREFIX}{module}.{end}")
}

/// The name of a replaced tensor of the base model. In a module with an update it is that of the layer below.
pub(super) fn of_saved(name: &str, is_adapted: impl Fn(&str) -> bool) -> String {
    match name.rsplit_once('.') {
        Some((module, leaf)) if is_adapted(module) => format!("{PREFIX}{module}.base_layer.{leaf}"),
        _ => format!("{PREFIX}{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_forms_are_read() {
        let update = |role, kind| Named::Update("model.q".into(), role, kind);
        for (end, expected) in [
            ("lora_A.weight", update(Role::A, Kind::Linear)),
            ("lora_B.weight", update(Role::B, Kind::Linear)),
            ("lora_B.bias", update(Role::Bias, Kind::Linear)),
            ("lora_embedding_A", update(Role::A, Kind::Embedding)),
            ("lora_embedding_B", update(Role::B, Kind::Embedding)),
            ("lora_magnitude_vector", update(Role::Magnitude, Kind::Linear)),
            ("lora_magnitude_vector.weight", update(Role::Magnitude, Kind::Linear)),
            ("base_layer.lora_A.weight", update(Role::A, Kind::Linear)),
            ("weight", Named::Saved("model.q.weight".into())),
            ("base_layer.bias", Named::Saved("model.q.bias".into())),
            ("modules_to_save.default.weight", Named::Saved("model.q.weight".into())),
            ("modules_to_save.bias", Named::Saved("model.q.bias".into())),
            ("modules_to_save.default.inner.bias", Named::Saved("model.q.inner.bias".into())),
            ("original_module.bias", Named::Original),
            ("lora_A.other.weight", Named::Unknown),
            ("lora_A", Named::Unknown),
            ("lora_diag", Named::Unknown),
            ("token_adapter.trainable_tokens_delta", Named::Unknown),
        ] {
            assert_eq!(parse(&format!("base_model.model.model.q.{end}")), expected, "{end}");
        }
        for bad in ["model.q.lora_A.weight", "base_model.model.lora_A.weight", "", "base_model.q.weight"] {
            assert_eq!(parse(bad), Named::Unknown, "{bad}");
        }
    }

    #[test]
    fn names_are_written_as_they_are_read() {
        for kind in [Kind::Linear, Kind::Embedding] {
            for role in [Role::A, Role::B] {
                assert_eq!(parse(&of_update("a.b", role, kind)), Named::Update("a.b".into(), role, kind));
            }
        }
        assert_eq!(of_saved("a.b.bias", |module| module == "a.b"), "base_model.model.a.b.base_layer.bias");
        assert_eq!(of_saved("a.c.bias", |module| module == "a.b"), "base_model.model.a.c.bias");
    }
}
