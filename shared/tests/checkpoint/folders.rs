use std::path::Path;

use fauna_shared::ErrorKind;
use fauna_shared::checkpoint::Checkpoint;

/// Writes a safetensors file with one tensor of one byte per name.
fn shard(path: &Path, names: &[&str]) {
    let view = || safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![1], &[7]).unwrap();
    let tensors: Vec<_> = names.iter().map(|name| (*name, view())).collect();
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

fn index(folder: &Path, map: &[(&str, &str)]) {
    let map: serde_json::Map<_, _> = map.iter().map(|(k, v)| (k.to_string(), (*v).into())).collect();
    let text = serde_json::json!({ "metadata": { "total_size": 2 }, "weight_map": map }).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
}

#[test]
fn shards_are_those_of_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    shard(&at("model-00001-of-00099.safetensors"), &["a"]);
    shard(&at("other.safetensors"), &["b", "unlisted"]);
    shard(&at("model.safetensors"), &["whole"]);
    index(folder.path(), &[("a", "model-00001-of-00099.safetensors"), ("b", "other.safetensors")]);
    let checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "unlisted"]);
    assert_eq!(checkpoint.file_of("b"), Some(&*at("other.safetensors")));
    assert_eq!(checkpoint.files().len(), 2);
}

#[test]
fn an_invalid_index_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |map: &[(&str, &str)]| {
        index(folder.path(), map);
        Checkpoint::open_folder(folder.path()).unwrap_err()
    };
    shard(&folder.path().join("one.safetensors"), &["a"]);
    shard(&folder.path().join("two.safetensors"), &["b"]);
    let astray = refused(&[("a", "two.safetensors"), ("b", "two.safetensors"), ("c", "one.safetensors")]);
    assert_eq!(
        astray.to_string().lines().skip(1).collect::<Vec<_>>(),
        ["  a in two.safetensors", "  c in one.safetensors"]
    );
    assert_eq!(refused(&[("a", "three.safetensors")]).kind(), ErrorKind::NotFound);
    for outside in ["../one.safetensors", "/etc/passwd", "a/b", "..", ""] {
        assert!(refused(&[("a", outside)]).to_string().contains("not a file name in the same folder"));
    }
    assert!(refused(&[]).to_string().contains("lists no tensors"));
    std::fs::write(folder.path().join("model.safetensors.index.json"), "{}").unwrap();
    assert!(Checkpoint::open_folder(folder.path()).unwrap_err().to_string().contains("invalid index"));
}

#[test]
fn duplicate_tensors_in_two_files_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["one.safetensors", "two.safetensors"].map(|name| folder.path().join(name));
    paths.iter().for_each(|path| shard(path, &["a"]));
    let error = Checkpoint::open_files(&paths).unwrap_err().to_string();
    assert!(
        error.contains("two.safetensors: tensor a is also in") && error.contains("one.safetensors"),
        "{error}"
    );
}

#[test]
fn a_nonstandard_name_must_be_the_only_one() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Checkpoint::open_folder(folder.path()).unwrap_err().kind(), ErrorKind::NotFound);
    shard(&folder.path().join("weights.safetensors"), &["a"]);
    std::fs::write(folder.path().join("training_args.bin"), "x").unwrap();
    assert!(Checkpoint::open_folder(folder.path()).unwrap().get("a").is_some());
    shard(&folder.path().join("more.safetensors"), &["b"]);
    let error = Checkpoint::open_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("2 .safetensors files") && error.contains("more.safetensors"), "{error}");
    let nowhere = Checkpoint::open_folder(&folder.path().join("none")).unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
}
