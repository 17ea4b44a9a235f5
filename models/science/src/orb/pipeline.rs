//! Pipeline of Orb.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::Rng;
use fauna_shared::item::{Atoms, Embeddings, Item, Tensors};
use fauna_shared::model::{
    Card, Collation, Evaluation, Loss, Model, Pipeline, Potential, Pretrained, SampleSizes, Trainable,
    TrainingBatch, only_known,
};
use fauna_shared::train::Example;
use fauna_shared::weights::{Modules, Weights};
use fauna_shared::{Error, Result, json, transfer};
use fauna_text::labelled::not_learned;
use serde_json::Value;

use super::heads::BINS;
use super::loss::{LossOptions, Targets};
use super::{Orb, Prediction, Structure, release};
use fauna_atoms::{cell, check_spin};

/// Maximum number of edges of a batch: enough for all cores, within a bounded memory.
const EDGES_PER_BATCH: usize = 8192;

/// What is learned.
const TARGETS: [&str; 3] = ["energy", "forces", "stress"];

/// Inputs of `forward`.
const INPUTS: [&str; 7] = ["atomic_numbers", "cell", "charge", "n_node", "pbc", "positions", "spin"];

/// An Orb with its card.
pub struct OrbPipeline {
    orb: Orb,
    card: Card,
}

impl OrbPipeline {
    /// Loads a checkpoint.
    ///
    /// # Errors
    /// Errors of the config and the tensors.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (orb, inventory, notes) = release::load(pretrained)?;
        let architecture = match orb.config().is_conservative() {
            true => "ConservativeForcefieldRegressor",
            false => "DirectForcefieldRegressor",
        };
        let mut card = pretrained.card(architecture, &inventory);
        let file = pretrained.checkpoint.iter().flat_map(|checkpoint| checkpoint.files()).next();
        let name = file.and_then(|file| release::release_of(&file.to_string_lossy()));
        if let Some(known) = pretrained.family.releases.iter().find(|known| Some(known.id) == name) {
            card.licence = Some(known.licence);
        }
        card.notes.extend(notes);
        if name.is_some_and(|name| name.starts_with("separate-d")) {
            card.notes.push("its energies are the correction for dispersion alone".to_string());
        }
        if orb.config().is_conditioned() {
            card.notes.push("it needs the total charge and the spin multiplicity".to_string());
        }
        Ok(Self { orb, card })
    }

    /// The network.
    pub fn orb(&self) -> &Orb {
        &self.orb
    }
}

impl Pipeline for OrbPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    /// `atomic_numbers` `(atoms)`, `positions` `(atoms, 3)` in Å, and optionally `cell` `(3, 3)` or `(structures, 3, 3)`,
    /// `pbc` `(3)` or `(structures, 3)`, `n_node` `(structures)`, `charge` and `spin` `(structures)`.
    ///
    /// Returns `energy`, `forces` and `stress` of a direct model, `energy`, `grad_forces`, `grad_stress` and
    /// `rotational_grad` of a conservative one, `confidence` of either; and the graph: `senders`, `receivers`,
    /// `unit_shifts`, `vectors`, sorted by sender, receiver and shift, and `wrapped_positions`.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        only_known(inputs, &INPUTS)?;
        let structures = named(structures(inputs)?.iter(), |atoms| self.orb.structure(atoms))?;
        let found = self.orb.predict(&structures)?;
        let mut out = graph_of(&structures)?;
        out.extend(self.tensors(found, structures.len())?);
        Ok(out)
    }

    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let atoms = items.iter().map(|item| match item {
            Item::Atoms(atoms) => Ok(atoms),
            other => Err(Error::input(format!("this model reads atoms, not {}", other.modality()))),
        });
        let structures =
            named(atoms.collect::<Result<Vec<_>>>()?.into_iter(), |atoms| self.orb.structure(atoms))?;
        let mut rows = Vec::new();
        for batch in batches(&structures) {
            rows.push(self.orb.embed(batch)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?);
        }
        let rows = match rows.is_empty() {
            true => Tensor::zeros((0, self.orb.config().latent_dim), DType::F32, &Device::Cpu)?,
            false => Tensor::cat(&rows, 0)?,
        };
        Ok(Embeddings::new(rows, vec![0; items.len()]))
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }

    fn potential(&self) -> Result<&dyn Potential> {
        Ok(&self.orb)
    }

    /// Synthetic crystals, `rows` of them with `tokens` atoms each, at a usual density: every atom has some 120 neighbours
    /// within 6 Å.
    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        match (method, sizes) {
            ("forward", SampleSizes { rows: 1.., tokens: 1.., images: 0 }) => {
                synthetic_crystals(sizes.rows, sizes.tokens)
            }
            _ => Err(self
                .cannot(&format!("run \"{method}\" on {} atoms and {} images", sizes.tokens, sizes.images))),
        }
    }
}

impl Trainable for OrbPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.orb = Orb::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }

    /// The weighted sum of the terms `energy`, `forces`, `stress` and `confidence`, of the structures of `forward` and
    /// their `energy`, `(structures)` in eV, `forces`, `(atoms, 3)` in eV/Å, and `stress`, `(structures, 6)` in eV/Å³.
    /// The statistics of the normalizers stay as they are.
    ///
    /// Options: `loss_weights`, by default 1 for every term with a target; `train_reference_energies`, by default false.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        only_known(inputs, &[&INPUTS[..], &TARGETS].concat())?;
        let options = LossOptions::of(options)?;
        let structures = named(structures(inputs)?.iter(), |atoms| self.orb.structure(atoms))?;
        let atoms = structures.iter().map(Structure::len).sum::<usize>();
        let target = |name: &str, count: usize| -> Result<Option<Vec<f64>>> {
            match numbers(inputs, name)? {
                Some(values) if values.len() != count => {
                    let found = values.len();
                    Err(Error::input(format!("{name} has {found} numbers, expected {count}")))
                }
                Some(values) if !values.iter().all(|value| value.is_finite()) => {
                    Err(Error::input(format!("{name} holds a value that is no number")))
                }
                values => Ok(values),
            }
        };
        let single = |values: Vec<f64>| singles(&values);
        let targets = Targets {
            energy: target("energy", structures.len())?,
            forces: target("forces", 3 * atoms)?.map(single),
            stress: target("stress", 6 * structures.len())?.map(single),
        };
        self.orb.loss(&structures, &targets, &options)
    }

    /// One graph of all structures. A target is given if all examples have it.
    fn collate(&self, examples: &[Example], _: &Collation) -> Result<TrainingBatch> {
        let (mut structures, mut known) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
        for example in examples {
            let Example::Atoms { atoms, energy, forces, stress } = example else {
                return Err(not_learned(example, "atoms"));
            };
            if forces.as_ref().is_some_and(|forces| forces.len() != atoms.numbers.len()) {
                return Err(Error::input(format!("forces are not those of {} atoms", atoms.numbers.len())));
            }
            known[0].push(energy.map(|energy| vec![energy]));
            known[1].push(forces.as_ref().map(|forces| forces.concat()));
            known[2].push(stress.map(|stress| stress.to_vec()));
            structures.push(atoms);
        }
        if structures.is_empty() {
            return Err(Error::input("no structures to learn from"));
        }
        let (count, cpu) = (structures.len(), &Device::Cpu);
        let atoms: usize = structures.iter().map(|atoms| atoms.numbers.len()).sum();
        let flat = |of: &dyn Fn(&Atoms) -> Vec<f64>| -> Vec<f64> {
            structures.iter().flat_map(|atoms| of(atoms)).collect()
        };
        let table = |values: Vec<f64>, shape: &[usize]| Ok::<_, Error>(Tensor::from_vec(values, shape, cpu)?);
        let numbers: Vec<i64> =
            structures.iter().flat_map(|atoms| &atoms.numbers).map(|number| i64::from(*number)).collect();
        let counts: Vec<i64> = structures.iter().map(|atoms| atoms.numbers.len() as i64).collect();
        let periodic: Vec<i64> = structures.iter().flat_map(|atoms| atoms.periodic).map(i64::from).collect();
        let cells = flat(&|atoms| atoms.cell.unwrap_or_default().concat());
        let mut inputs = Tensors::from([
            ("atomic_numbers".to_string(), Tensor::from_vec(numbers, atoms, cpu)?),
            ("n_node".to_string(), Tensor::from_vec(counts, count, cpu)?),
            ("pbc".to_string(), Tensor::from_vec(periodic, (count, 3), cpu)?),
            ("cell".to_string(), table(cells, &[count, 3, 3])?),
            ("positions".to_string(), table(flat(&|atoms| atoms.positions.concat()), &[atoms, 3])?),
        ]);
        if self.orb.config().is_conditioned() {
            type Known = (&'static str, fn(&Atoms) -> Option<f64>);
            let known: [Known; 2] = [("charge", |atoms| atoms.charge), ("spin", |atoms| atoms.spin)];
            for (name, of) in known {
                let values: Option<Vec<f64>> = structures.iter().map(|atoms| of(atoms)).collect();
                let missing = || Error::input(format!("a structure has no {name}, which this model needs"));
                inputs.insert(name.to_string(), table(values.ok_or_else(missing)?, &[count])?);
            }
        }
        let shapes: [&[usize]; 3] = [&[count], &[atoms, 3], &[count, 6]];
        for ((name, values), shape) in TARGETS.iter().zip(known).zip(shapes) {
            match values.iter().flatten().count() {
                0 => {}
                found if found < count => {
                    return Err(Error::input(format!("{found} of {count} structures have {name}"))
                        .hint("a data set must know the same of all its structures"));
                }
                _ => {
                    let values: Vec<f64> = values.into_iter().flatten().flatten().collect();
                    inputs.insert((*name).to_string(), table(values, shape)?);
                }
            }
        }
        Ok(TrainingBatch::new(inputs))
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"^(heads|node_head|graph_head|stress_head)\.")
    }

    fn modules(&self) -> Modules {
        Arc::new(release::current_name)
    }
}

impl Potential for Orb {
    fn evaluate(&self, structures: &[Atoms]) -> Result<Vec<Evaluation>> {
        let structures = named(structures.iter(), |atoms| {
            if self.config.is_conditioned() {
                check_spin(atoms)?;
            }
            self.structure(atoms)
        })?;
        let mut all = Vec::with_capacity(structures.len());
        for batch in batches(&structures) {
            all.extend(self.evaluations(batch, self.predict(batch)?)?);
        }
        Ok(all)
    }

    fn reads_charge(&self) -> bool {
        self.config.is_conditioned()
    }

    fn is_conservative(&self) -> bool {
        self.config.is_conservative()
    }
}

impl Orb {
    /// The outputs per structure.
    fn evaluations(&self, structures: &[Structure], found: Prediction) -> Result<Vec<Evaluation>> {
        let odds: Option<Vec<f32>> = match &found.confidence {
            Some(odds) => Some(transfer::to_host(&odds.detach().to_dtype(DType::F32)?)?),
            None => None,
        };
        let heads = self.heads.as_ref();
        let error = |odds: &[f32]| heads.map_or(0.0, |heads| heads.expected_error(odds));
        let mut start = 0;
        let one = |(index, structure): (usize, &Structure)| {
            let atoms = start..start + structure.len();
            start = atoms.end;
            let has_cell = structure.periodic != [false; 3] && cell::volume(&structure.cell) > 0.0;
            let stress = found.stress.as_ref().filter(|_| has_cell);
            let odds = odds.as_ref().map(|odds| &odds[BINS * atoms.start..BINS * atoms.end]);
            Evaluation {
                energy: found.energy[index],
                forces: found.forces[atoms].to_vec(),
                stress: stress.map(|stress| stress[index]),
                confidence: odds.map(|odds| odds.chunks_exact(BINS).map(error).collect()),
                rotational_grad: found.rotational_grad.as_ref().map(|all| all[index]),
            }
        };
        Ok(structures.iter().enumerate().map(one).collect())
    }
}

/// `make` of each; errors have the index of the structure if there are several.
fn named<'a, T>(
    all: impl ExactSizeIterator<Item = &'a Atoms>,
    make: impl Fn(&Atoms) -> Result<T>,
) -> Result<Vec<T>> {
    let several = all.len() > 1;
    let one = |(index, atoms): (usize, &Atoms)| {
        make(atoms).map_err(|error| if several { error.context(format!("structure {index}")) } else { error })
    };
    all.enumerate().map(one).collect()
}

/// Batches of structures by their number of edges; a larger structure is a batch of its own.
fn batches(structures: &[Structure]) -> Vec<&[Structure]> {
    let (mut batches, mut start, mut edges) = (Vec::new(), 0, 0);
    for (index, structure) in structures.iter().enumerate() {
        if index > start && edges + structure.edges.len() > EDGES_PER_BATCH {
            batches.push(&structures[start..index]);
            (start, edges) = (index, 0);
        }
        edges += structure.edges.len() + structure.len();
    }
    if start < structures.len() {
        batches.push(&structures[start..]);
    }
    batches
}

fn numbers(inputs: &Tensors, name: &str) -> Result<Option<Vec<f64>>> {
    match inputs.get(name) {
        Some(tensor) => Ok(Some(transfer::to_host(&tensor.to_dtype(DType::F64)?)?)),
        None => Ok(None),
    }
}

/// Entry `index` of `values`, of `width` numbers each; a single entry is that of all structures.
fn entry<'a>(values: &'a [f64], width: usize, index: usize, of: usize, name: &str) -> Result<&'a [f64]> {
    if values.len() == width {
        return Ok(values);
    }
    if values.len() == width * of {
        return Ok(&values[index * width..(index + 1) * width]);
    }
    Err(Error::input(format!(
        "{name} has {} numbers, expected {width} for each of {of} structures",
        values.len()
    )))
}

/// The structures of the input tensors.
fn structures(inputs: &Tensors) -> Result<Vec<Atoms>> {
    let missing = |name: &str| Error::input(format!("{name} is missing"));
    let atomic = numbers(inputs, "atomic_numbers")?.ok_or_else(|| missing("atomic_numbers"))?;
    let positions = numbers(inputs, "positions")?.ok_or_else(|| missing("positions"))?;
    if positions.len() != 3 * atomic.len() {
        let message = format!("{} atomic numbers and {} coordinates", atomic.len(), positions.len());
        return Err(Error::input(message).hint("positions are (atoms, 3)"));
    }
    let counts = numbers(inputs, "n_node")?.unwrap_or_else(|| vec![atomic.len() as f64]);
    let is_count = |count: &f64| *count >= 0.0 && *count <= atomic.len() as f64;
    if !counts.iter().all(is_count) || counts.iter().sum::<f64>() != atomic.len() as f64 {
        return Err(Error::input(format!("n_node is {counts:?} for {} atoms", atomic.len())));
    }
    let cells = numbers(inputs, "cell")?.unwrap_or_else(|| vec![0.0; 9]);
    let periodic = numbers(inputs, "pbc")?.unwrap_or_else(|| vec![0.0; 3]);
    let [charges, spins] = ["charge", "spin"].map(|name| numbers(inputs, name));
    let (charges, spins) = (charges?, spins?);
    let (mut all, mut start) = (Vec::with_capacity(counts.len()), 0);
    for (index, count) in counts.iter().enumerate() {
        let end = start + *count as usize;
        let cell = entry(&cells, 9, index, counts.len(), "cell")?;
        let periodic = entry(&periodic, 3, index, counts.len(), "pbc")?;
        let one = |values: &Option<Vec<f64>>, name: &str| match values {
            Some(values) => Ok::<_, Error>(Some(entry(values, 1, index, counts.len(), name)?[0])),
            None => Ok(None),
        };
        let cell: cell::Matrix = std::array::from_fn(|i| std::array::from_fn(|j| cell[3 * i + j]));
        all.push(Atoms {
            // Other numbers are refused as unknown elements.
            numbers: atomic[start..end].iter().map(|number| *number as u8).collect(),
            positions: positions[3 * start..3 * end].as_chunks::<3>().0.to_vec(),
            cell: (!cell::is_zero(&cell)).then_some(cell),
            periodic: std::array::from_fn(|axis| periodic[axis] != 0.0),
            charge: one(&charges, "charge")?,
            spin: one(&spins, "spin")?,
            ..Atoms::default()
        });
        start = end;
    }
    Ok(all)
}

/// The graph by the names of the reference.
fn graph_of(structures: &[Structure]) -> Result<Tensors> {
    let (mut senders, mut receivers, mut shifts) = (Vec::new(), Vec::new(), Vec::new());
    let (mut vectors, mut positions) = (Vec::new(), Vec::new());
    let mut start = 0;
    for structure in structures {
        let edges = &structure.edges;
        senders.extend(edges.senders.iter().map(|node| start + i64::from(*node)));
        receivers.extend(edges.receivers.iter().map(|node| start + i64::from(*node)));
        shifts.extend(edges.shifts.iter().flatten().map(|shift| i64::from(*shift)));
        vectors.extend(edges.vectors.iter().flatten().map(|value| *value as f32));
        positions.extend(structure.positions.iter().flatten().map(|value| *value as f32));
        start += structure.len() as i64;
    }
    let (edges, atoms, cpu) = (senders.len(), positions.len() / 3, &Device::Cpu);
    Ok(Tensors::from([
        ("senders".into(), Tensor::from_vec(senders, edges, cpu)?),
        ("receivers".into(), Tensor::from_vec(receivers, edges, cpu)?),
        ("unit_shifts".into(), Tensor::from_vec(shifts, (edges, 3), cpu)?),
        ("vectors".into(), Tensor::from_vec(vectors, (edges, 3), cpu)?),
        ("wrapped_positions".into(), Tensor::from_vec(positions, (atoms, 3), cpu)?),
    ]))
}

fn singles<'a>(values: impl IntoIterator<Item = &'a f64>) -> Vec<f32> {
    values.into_iter().map(|value| *value as f32).collect()
}

impl OrbPipeline {
    /// The outputs for `count` structures by the names of the reference, float32.
    fn tensors(&self, found: Prediction, count: usize) -> Result<Tensors> {
        let (forces, stress) = match self.orb.config().is_conservative() {
            true => ("grad_forces", "grad_stress"),
            false => ("forces", "stress"),
        };
        let cpu = &Device::Cpu;
        let mut out = Tensors::from([
            ("energy".into(), Tensor::from_vec(singles(&found.energy), count, cpu)?),
            (
                forces.into(),
                Tensor::from_vec(singles(found.forces.iter().flatten()), (found.forces.len(), 3), cpu)?,
            ),
        ]);
        if let Some(values) = found.stress {
            let values = singles(values.iter().flatten());
            out.insert(stress.into(), Tensor::from_vec(values, (count, 6), cpu)?);
        }
        if let Some(odds) = found.confidence {
            out.insert("confidence".into(), odds.to_dtype(DType::F32)?.to_device(cpu)?);
        }
        if let Some(values) = found.rotational_grad {
            let values = singles(values.iter().flatten().flatten());
            out.insert("rotational_grad".into(), Tensor::from_vec(values, (count, 3, 3), cpu)?);
        }
        if let Some(values) = found.latent_charges {
            out.insert("latent_charges".into(), Tensor::from_vec(singles(&values), (values.len(), 1), cpu)?);
        }
        Ok(out)
    }
}

/// Distance between neighbouring sites of synthetic crystals, in Å.
const SPACING: f64 = 1.9;

/// `rows` crystals of `count` atoms with displaced sites in a nearly cubic box.
fn synthetic_crystals(rows: usize, count: usize) -> Result<Tensors> {
    let x = (count as f64).cbrt().floor().max(1.0) as usize;
    let y = (count as f64 / x as f64).sqrt().ceil().max(1.0) as usize;
    let sides = [x, y, count.div_ceil(x * y)];
    let mut random = Rng::new(0, 0);
    let (mut atomic, mut positions, mut cells) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..rows {
        for site in 0..count {
            atomic.push([3i64, 8, 22, 8, 26, 8][(site + row) % 6]);
            let corner = [site % x, site / x % y, site / x / y];
            positions.extend(corner.map(|place| {
                let moved = SPACING * place as f64 + 0.3 * (random.uniform() - 0.5);
                moved as f32
            }));
        }
        let [a, b, c] = sides.map(|side| (SPACING * side as f64) as f32);
        cells.extend([a, 0.0, 0.0, 0.0, b, 0.0, 0.0, 0.0, c]);
    }
    let cpu = &Device::Cpu;
    let all = rows * count;
    Ok(Tensors::from([
        ("atomic_numbers".into(), Tensor::from_vec(atomic, all, cpu)?),
        ("positions".into(), Tensor::from_vec(positions, (all, 3), cpu)?),
        ("cell".into(), Tensor::from_vec(cells, (rows, 3, 3), cpu)?),
        ("pbc".into(), Tensor::ones((rows, 3), DType::I64, cpu)?),
        ("n_node".into(), Tensor::from_vec(vec![count as i64; rows], rows, cpu)?),
        ("charge".into(), Tensor::zeros(rows, DType::F32, cpu)?),
        ("spin".into(), Tensor::ones(rows, DType::F32, cpu)?),
    ]))
}
