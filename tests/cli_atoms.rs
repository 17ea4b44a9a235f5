//! Tests of the whole program: atomic structures.

#[allow(dead_code, reason = "shared with the tests of other commands, which use all of it")]
#[path = "support/program.rs"]
mod program;

use std::path::{Path, PathBuf};

use fauna::atoms::files;
use program::{json_lines, refused, run, text};
use serde_json::Value;

/// A small conservative Orb with forces large enough to move atoms.
const MODEL: &str = "tests/parity/orb/v3_conservative_crystal/model";

/// Rock salt with one displaced atom, and a water molecule.
const STRUCTURES: &str = "\
8
Lattice=\"5.6 0 0 0 5.6 0 0 0 5.6\" Properties=species:S:1:pos:R:3 pbc=\"T T T\"
Na 0.2 0.1 0.0
Na 0.0 2.8 2.8
Na 2.8 0.0 2.8
Na 2.8 2.8 0.0
Cl 2.8 0.0 0.0
Cl 0.0 2.8 0.0
Cl 0.0 0.0 2.8
Cl 2.8 2.8 2.8
3
Properties=species:S:1:pos:R:3 pbc=\"F F F\"
O 0.0 0.0 0.0
H 0.96 0.0 0.0
H -0.24 0.93 0.0
";

fn file(folder: &Path, name: &str, content: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, not {value}"))
}

#[test]
fn energy_is_computed_for_each_structure_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (file(folder.path(), "two.xyz", STRUCTURES), folder.path().join("out.xyz"));
    let ask = ["energy", MODEL, "--atoms", text(&path)];
    let done = run(&[&ask[..], &["--out", text(&out)]].concat());
    assert_eq!(done.status, 0, "{}", done.err);
    for part in ["structure", "Cl4Na4", "H2O", "eV/atom", "GPa"] {
        assert!(done.out.contains(part), "{part} is not in: {}", done.out);
    }
    let done = run(&[&ask[..], &["--json"]].concat());
    let lines = json_lines(&done.out);
    assert_eq!(lines.len(), 2);
    let written = files::read(&out).unwrap();
    for (line, frame) in lines.iter().zip(&written) {
        let evaluation = &line["evaluation"];
        let (written, printed) = (frame.energy.unwrap(), number(&evaluation["energy"]));
        assert!((written - printed).abs() < 1e-12, "{written} in the file, {printed} on standard output");
        assert_eq!(frame.forces.as_ref().unwrap().len(), evaluation["forces"].as_array().unwrap().len());
    }
    assert!(lines[0]["evaluation"]["stress"].is_array() && lines[1]["evaluation"]["stress"].is_null());
    // The crystal has the same energy alone and in a batch.
    let crystal: String = STRUCTURES.lines().take(10).flat_map(|line| [line, "\n"]).collect();
    let alone = file(folder.path(), "alone.xyz", &crystal);
    let alone = json_lines(&run(&["energy", MODEL, "--atoms", text(&alone), "--json"]).out);
    let (a, b) = (number(&alone[0]["evaluation"]["energy"]), number(&lines[0]["evaluation"]["energy"]));
    assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{a} alone, {b} in a batch");
}

#[test]
fn relax_and_md_run_and_plot_the_energy() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "two.xyz", STRUCTURES);
    let (out, plot) = (folder.path().join("out.xyz"), folder.path().join("energy.png"));
    let picture = folder.path().join("last.png");
    let ask = [MODEL, "--atoms", text(&path), "--force", "--out", text(&out), "--plot", text(&plot)];
    let ask = [&ask[..], &["--picture", text(&picture)]].concat();
    let relax = [&["relax"], &ask[..], &["--max-steps", "5", "--fmax", "0.0001", "--json"]].concat();
    let done = run(&relax);
    assert_eq!(done.status, 0, "{}", done.err);
    let single = json_lines(&run(&["energy", MODEL, "--atoms", text(&path), "--json"]).out);
    let relaxed = json_lines(&done.out);
    for (relaxed, single) in relaxed.iter().zip(&single) {
        let energy = |line: &Value| number(&line["evaluation"]["energy"]);
        assert!(energy(relaxed) < energy(single), "downhill: {} from {}", energy(relaxed), energy(single));
    }
    assert_eq!(files::read(&out).unwrap().len(), 2);
    assert!(std::fs::read(&plot).unwrap().starts_with(b"\x89PNG"));
    assert_eq!(fauna::image::read(&picture).unwrap().width, 640);
    // An earlier picture is overwritten, another file is not.
    let draw = || run(&["energy", MODEL, "--atoms", text(&path), "--picture", text(&picture)]);
    assert_eq!(draw().status, 0);
    std::fs::write(&picture, "a letter").unwrap();
    refused(&draw(), 2, &["last.png", "--force"]);

    let md = [&["md"], &ask[..], &["--steps", "20", "--kelvin", "200", "--time-step", "0.5", "--every", "5"]]
        .concat();
    let done = run(&[&md[..], &["--nve", "--json"]].concat());
    assert_eq!(done.status, 0, "{}", done.err);
    let moments = json_lines(&done.out);
    assert_eq!(moments.len(), 2 * 5);
    let total = |line: &Value| number(&line["potential_energy"]) + number(&line["kinetic_energy"]);
    for run in moments.chunks(5) {
        assert!((number(&run[0]["temperature"]) - 200.0).abs() < 1e-6);
        // The drift of the total energy is small compared with the kinetic energy.
        let exchanged = run.iter().map(|moment| number(&moment["kinetic_energy"])).fold(0.0, f64::max);
        for moment in run {
            assert!(
                (total(moment) - total(&run[0])).abs() < 0.02 * exchanged,
                "the total energy drifts: {moment}"
            );
        }
    }
    assert_eq!(files::read(&out).unwrap().len(), 10);
    let again = run(&md);
    assert_eq!((again.status, run(&md).out), (0, again.out.clone()), "{}", again.err);
    assert!(again.out.contains("potential eV"), "{}", again.out);
}

#[test]
fn an_invalid_structure_is_reported_and_the_others_are_processed() {
    let folder = tempfile::tempdir().unwrap();
    let overlapping = "2\n\nH 0 0 0\nH 0 0 0.000001\n";
    let path = file(folder.path(), "three.xyz", &format!("{overlapping}{STRUCTURES}"));
    let done = run(&["energy", MODEL, "--atoms", text(&path), "--json"]);
    refused(&done, 2, &["three.xyz: structure 1"]);
    assert_eq!(json_lines(&done.out).len(), 2);
    // The molecule has no cell to relax.
    let path = file(folder.path(), "two.xyz", STRUCTURES);
    let ask = ["relax", MODEL, "--atoms", text(&path), "--cell", "free", "--max-steps", "2", "--json"];
    let done = run(&ask);
    refused(&done, 2, &["two.xyz: structure 2", "cell"]);
    assert_eq!(json_lines(&done.out).len(), 1);
}

#[test]
fn invalid_input_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let ask = |content: &str| {
        let path = file(folder.path(), "one.xyz", content);
        run(&["energy", MODEL, "--atoms", text(&path)])
    };
    refused(&ask("1\n\nXx 0 0 0\n"), 2, &["one.xyz", "Xx"]);
    refused(&ask("2\n\nH 0 0 0\n"), 2, &["one.xyz", "line"]);
    refused(&ask("1\nLattice=\"1 0 0 2 0 0 0 0 1\" pbc=\"T T T\"\nH 0 0 0\n"), 2, &["one.xyz"]);
    let path = file(folder.path(), "two.xyz", STRUCTURES);
    let other = ["energy", "minilm", "--atoms", text(&path)];
    refused(&run(&other), 2, &["does not support energy"]);
    let plot = folder.path().join("a.png");
    let single = ["energy", MODEL, "--atoms", text(&path), "--plot", text(&plot)];
    refused(&run(&single), 2, &["--plot", "fauna energy"]);
    let missing = ["energy", MODEL, "--atoms", "nowhere.xyz"];
    refused(&run(&missing), 2, &["nowhere.xyz"]);
}

#[test]
fn constraints_of_a_file_are_applied_and_its_other_data_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.xyz");
    let masked = "4\nLattice=\"5 0 0 0 5 0 0 0 5\" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:magmoms:R:1 \
                  virial=\"1 2 3\" REF_energy=-5\nNa 0 0 0 F 1 0.5\nNa 2.5 2.5 0 F 2 0.5\nCl 2.6 0 0.25 T 3 -1\n\
                  Cl 0 2.5 0.3 T 4 -1\n";
    let selective = "slab\n1\n5 0 0\n0 5 0\n0 0 5\nNa Cl\n2 2\nSelective dynamics\nDirect\n0 0 0 F F F\n\
                     0.5 0.5 0 F F F\n0.52 0 0.05 T T T\n0 0.5 0.06 T T F\n";
    for (name, content) in [("masked.xyz", masked), ("POSCAR", selective)] {
        let path = file(folder.path(), name, content);
        let start = files::read(&path).unwrap().remove(0).atoms;
        for how in [&["relax", "--max-steps", "10"][..], &["md", "--steps", "10", "--kelvin", "300"]] {
            let ask = [MODEL, "--atoms", text(&path), "--charge", "3", "--force", "--out", text(&out)];
            let done = run(&[how, &ask[..]].concat());
            assert_eq!(done.status, 0, "{}", done.err);
            assert!(done.err.contains("of 4 atoms are fixed"), "{}", done.err);
            assert!(done.err.contains("this model does not use charge"), "{}", done.err);
            let last = files::read(&out).unwrap().pop().unwrap();
            assert_eq!(last.atoms.positions[..2], start.positions[..2]);
            assert_ne!(last.atoms.positions[2], start.positions[2]);
            assert_eq!((last.atoms.held, last.atoms.charge), (start.held.clone(), None));
            if name == "masked.xyz" {
                let columns: Vec<&str> = last.columns.iter().map(|column| column.name.as_str()).collect();
                assert_eq!(columns, ["tags", "magmoms"]);
                assert_eq!(last.columns[0].values, ["1", "2", "3", "4"]);
                assert!(last.info.contains_key("REF_energy") && !last.info.contains_key("virial"));
                assert!(done.err.contains("results of another calculator: virial"), "{}", done.err);
            } else {
                assert_eq!(last.atoms.positions[3][2], start.positions[3][2]);
            }
        }
    }
}
