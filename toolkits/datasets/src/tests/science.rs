//! Time series, nucleotide sequences, atomic structures.

use fauna_shared::train::Example;

use super::{default, folder, read, refused};
use crate::{Dataset, DatasetKind};

#[test]
fn series_have_gaps_and_covariates() {
    let text = "item_id,timestamp,target,price\na,2024-01-01,1,10\na,2024-01-02,2,11\na,2024-01-04,4,13\na,2024-01-05,,13\n\
                b,2024-01-01,5,1\nb,2024-01-02,6,1\nb,2024-01-03,7,1\n";
    let folder = folder(&[("sales.csv", text)]);
    let dataset = Dataset::open(folder.path(), &default()).unwrap();
    assert_eq!((dataset.kind(), dataset.train().len()), (DatasetKind::Series, 2));
    let Example::Series { id, history } = dataset.train().get(0).unwrap() else { panic!() };
    assert_eq!((id.as_str(), history.values.len(), history.values[3]), ("a", 5, 4.0));
    assert!(history.values[2].is_nan() && history.values[4].is_nan());
    assert_eq!((history.covariates[0].name.as_str(), history.covariates[0].past[1]), ("price", 11.0));
    let dataset = Dataset::open(folder.path(), &default().without("price").with_valid_fraction(0.5)).unwrap();
    let Example::Series { history, .. } = dataset.validation().unwrap().get(0).unwrap() else { panic!() };
    assert!(history.covariates.is_empty());
    for (text, part) in [
        ("unique_id,ds,y\na,2024-01-01,x\n", "line 2: column `y`: `x` is not a number"),
        ("unique_id,ds,y\na,2024-01-01,inf\n", "line 2: column `y`"),
        ("unique_id,ds,value2\na,2024-01-01,1\n", "no column is called `y`"),
        ("unique_id,ds,y\n", "the table has no rows"),
    ] {
        refused(read("a.csv", text, &default()), &["a.csv", part]);
    }
    refused(
        Dataset::open(folder.path(), &default().without("cost")),
        &["no covariate is called `cost`", "price"],
    );
}

#[test]
fn series_are_of_the_frequency_that_is_given_or_inferred() {
    let text =
        "unique_id,ds,y\na,2024-01-01,1\na,2024-01-04,2\na,2024-01-06,3\na,2024-01-07,4\na,2024-02-19,5\n";
    refused(read("a.csv", text, &default()), &["a.csv", "cannot be inferred", "frequency"]);
    let examples = read("a.csv", text, &default().with_frequency("D".parse().unwrap())).unwrap();
    let Example::Series { history, .. } = &examples[0] else { panic!() };
    assert_eq!((history.values.len(), history.values[5], history.values[49]), (50, 3.0, 5.0));
    let weekly = default().with_frequency("W-MON".parse().unwrap());
    refused(read("a.csv", text, &weekly), &["series `a`", "2024-01-04", "W-MON"]);
}

#[test]
fn genes_are_read_from_fasta() {
    let text = "\n>a first\nACGT\nacgu\n>b\nNNN";
    let examples = read("a.fasta", text, &default()).unwrap();
    let genes: Vec<&str> = examples
        .iter()
        .map(|example| match example {
            Example::Gene(gene) => gene.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(genes, ["ACGTacgu", "NNN"]);
    for (text, part) in [
        ("ACGT\n", "line 1: text before the first header"),
        (">a\nAC-T\n", "line 2: \"-\" is not a nucleotide"),
        (">a\n>b\nA\n", "line 1: the sequence is empty"),
        (">b\nA\n>a\n", "line 3: the sequence is empty"),
        ("", "the data set is empty"),
    ] {
        refused(read("a.fa", text, &default()), &["a.fa: ", part]);
    }
}

const CELL: &str = "Lattice=\"2 0 0 0 2 0 0 0 2\"";

#[test]
fn structures_have_energies_forces_and_stress() {
    let text = format!(
        "2\n{CELL} Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 stress=\"1 6 5 6 2 4 5 4 3\"\nNa 0 0 0 1 2 3\nCl 1 1 1 -1 -2 -3\n\
         1\nenergy=-2 charge=1 spin=2\nH 0 0 0\n"
    );
    let text = text.replace("energy=-2", "Properties=species:S:1:pos:R:3 energy=-2");
    let examples = read("a.xyz", &text, &default()).unwrap();
    let Example::Atoms { atoms, energy, forces, stress } = &examples[0] else { panic!() };
    assert_eq!((atoms.numbers.as_slice(), *energy), (&[11, 17][..], Some(-1.5)));
    assert_eq!(forces.as_ref().unwrap()[1], [-1.0, -2.0, -3.0]);
    assert_eq!(*stress, Some([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let Example::Atoms { atoms, energy, forces, stress } = &examples[1] else { panic!() };
    assert_eq!((atoms.charge, atoms.spin, *energy), (Some(1.0), Some(2.0), Some(-2.0)));
    assert!(forces.is_none() && stress.is_none());
}

#[test]
fn names_of_mace_and_given_names_are_read() {
    let mace = format!(
        "1\n{CELL} Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-1.5 REF_stress=\"1 0 0 0 1 0 0 0 1\"\nNa 0 0 0 1 2 3\n"
    );
    let Example::Atoms { energy, forces, stress, .. } = read("a.xyz", &mace, &default()).unwrap().remove(0)
    else {
        panic!()
    };
    assert_eq!((energy, forces.unwrap()[0], stress.unwrap()[0]), (Some(-1.5), [1.0, 2.0, 3.0], 1.0));
    let own = mace.replace("REF_energy", "dft");
    let options = default().with_column("energy", "dft");
    let Example::Atoms { energy, .. } = read("a.xyz", &own, &options).unwrap().remove(0) else { panic!() };
    assert_eq!(energy, Some(-1.5));
    let both = mace.replace("REF_energy=-1.5", "REF_energy=-1.5 energy=-7");
    refused(read("a.xyz", &both, &default()), &["both `energy` and `REF_energy`", "DatasetOptions::columns"]);
    let Example::Atoms { energy, .. } =
        read("a.xyz", &both, &default().with_column("energy", "REF_energy")).unwrap().remove(0)
    else {
        panic!()
    };
    assert_eq!(energy, Some(-1.5));
    // ASE: virial = - stress * volume.
    let virial = format!("1\n{CELL} virial=\"-8 0 0 0 -16 0 0 0 -24\"\nNa 0 0 0\n");
    let Example::Atoms { stress, .. } = read("a.xyz", &virial, &default()).unwrap().remove(0) else {
        panic!()
    };
    assert_eq!(stress.unwrap()[..3], [1.0, 2.0, 3.0]);
}

#[test]
fn structures_without_something_to_learn_are_refused() {
    let good = "1\nenergy=-1\nH 0 0 0\n";
    for (text, part) in [
        ("1\nstep=4\nH 0 0 0\n".to_string(), "no structure has an energy"),
        (format!("{good}1\nstep=4\nH 0 0 0\n"), "structure 2 (from line 4 on): there is no energy"),
        (format!("{good}1\nenergy=nan\nH 0 0 0\n"), "structure 2 (from line 4 on)"),
        ("1\nREF_energy=nan\nH 0 0 0\n".to_string(), "REF_energy must be 1 finite numbers"),
        (format!("{good}2\nenergy=-1\nH 0 0 0\n"), "line 4: expected 2 atoms, found 1 lines"),
        (format!("{good}x\n"), "line 4: expected the number of atoms, found \"x\""),
        ("1\nvirial=\"1 0 0 0 1 0 0 0 1\"\nH 0 0 0\n".to_string(), "without a cell"),
        (
            "1\nProperties=species:S:1:pos:R:3:REF_forces:R:2\nH 0 0 0 1 1\n".to_string(),
            "REF_forces has 2 numbers per atom",
        ),
        (String::new(), "a.xyz: "),
    ] {
        refused(read("a.xyz", &text, &default()), &["a.xyz", part]);
    }
    refused(
        read("a.xyz", good, &default().with_column("energy", "dft")),
        &["no structure has the energy `dft`"],
    );
}
