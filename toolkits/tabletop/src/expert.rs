//! A policy that knows what to do: it reads the state and no picture.

use fauna_shared::model::{Controller, DegreeOfFreedom, Observation, Policy, Task};
use fauna_shared::{Error, Result};

use super::scene::{BLOCK, Colour, FLOOR, LARGEST, flat_distance};

/// Numbers of a state before its blocks, and of each block.
const BEFORE: usize = 8;
const OF_BLOCK: usize = 5;

/// How high it travels, in metres.
const TRAVEL: f64 = 0.15;
/// How near is near enough, in metres and in radians.
const NEAR: f64 = 0.004;
const ALIGNED: f64 = 0.03;

/// The scripted expert: over the block, down, close, up, and for stacking over the other block, down, open, away. It acts
/// by what [`Scene::state`](super::Scene::state) tells, so that it goes on from wherever a scene is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expert;

/// What an instruction asks for: a block, and where it is to go.
struct Asked {
    block: Colour,
    on: Option<Colour>,
}

impl Policy for Expert {
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for an instruction that is none of a scene's.
    fn start(&self, task: &Task) -> Result<Box<dyn Controller + '_>> {
        Ok(Box::new(asked(&task.instruction)?))
    }
}

/// Reads "pick up the red block" and "put the red block on the blue block".
fn asked(instruction: &str) -> Result<Asked> {
    let colour = |name: &str| Colour::ALL.into_iter().find(|colour| colour.name() == name);
    let instruction = instruction.to_lowercase();
    let words: Vec<&str> = instruction.split_whitespace().collect();
    let asked = match words[..] {
        ["pick", "up", "the", block, "block"] => colour(block).map(|block| Asked { block, on: None }),
        ["put", "the", block, "block", "on", "the", under, "block"] => {
            colour(block).zip(colour(under)).map(|(block, under)| Asked { block, on: Some(under) })
        }
        _ => None,
    };
    asked.ok_or_else(|| {
        Error::input(format!("the expert does not know how to \"{instruction:.80}\""))
            .hint("known: pick up the COLOUR block; put the COLOUR block on the COLOUR block")
    })
}

/// Where a block is.
struct Seen {
    place: [f64; 3],
    yaw: f64,
}

/// A state, read.
struct World<'a> {
    place: [f64; 3],
    yaw: f64,
    opening: f64,
    holds: bool,
    blocks: &'a [f64],
}

impl<'a> World<'a> {
    fn of(state: &'a [f64]) -> Result<Self> {
        let blocks = state.get(BEFORE..).filter(|blocks| blocks.len() % OF_BLOCK == 0).ok_or_else(|| {
            Error::input(format!("a state of {} numbers: the table-top's own wanted", state.len()))
        })?;
        Ok(Self {
            place: [state[0], state[1], state[2]],
            yaw: state[5],
            opening: state[6],
            holds: state[7] > 0.5,
            blocks,
        })
    }

    fn block(&self, colour: Colour) -> Result<Seen> {
        let number = colour as usize as f64;
        let found = self.blocks.chunks_exact(OF_BLOCK).find(|block| block[0] == number);
        let block =
            found.ok_or_else(|| Error::input(format!("there is no {} block on the table", colour.name())))?;
        Ok(Seen { place: [block[1], block[2], block[3]], yaw: block[4] })
    }

    /// The shortest turn of the jaws to the sides of a block turned by `yaw`.
    fn turn_to(&self, yaw: f64) -> f64 {
        let quarter = std::f64::consts::FRAC_PI_2;
        let turn = (yaw - self.yaw).rem_euclid(quarter);
        if turn > quarter / 2.0 { turn - quarter } else { turn }
    }

    /// A step towards `place` and a turn, with the gripper `opening`.
    fn towards(&self, place: [f64; 3], turn: f64, opening: f64) -> Vec<f64> {
        let step = |axis: usize| (place[axis] - self.place[axis]).clamp(-LARGEST[0], LARGEST[0]);
        vec![step(0), step(1), step(2), 0.0, 0.0, turn.clamp(-LARGEST[1], LARGEST[1]), opening]
    }

    /// To the place over `target` first, then down to `height`; none when it is there.
    fn approach(&self, target: [f64; 3], height: f64, turn: f64, opening: f64) -> Option<Vec<f64>> {
        let [x, y, z] = self.place;
        let off = flat_distance(self.place, target);
        if off > NEAR || turn.abs() > ALIGNED {
            // Up before aside where it is deep among the blocks.
            let aside =
                if z < TRAVEL - 0.05 && off > 0.02 { [x, y, TRAVEL] } else { [target[0], target[1], TRAVEL] };
            return Some(self.towards(aside, turn, opening));
        }
        let down = [target[0], target[1], height];
        ((z - height).abs() > NEAR).then(|| self.towards(down, turn, opening))
    }
}

impl Controller for Asked {
    fn act(&mut self, seen: &Observation) -> Result<Vec<f64>> {
        let world = World::of(seen.state)?;
        let block = world.block(self.block)?;
        let [x, y, z] = world.place;
        let held = world.holds && flat_distance(block.place, world.place) < NEAR;
        if held {
            let Some(under) = self.on else {
                return Ok(world.towards([x, y, z + LARGEST[0]], 0.0, 0.0));
            };
            let under = world.block(under)?;
            let height = under.place[2] + BLOCK + NEAR / 2.0;
            let turn = world.turn_to(under.yaw);
            let action = world.approach(under.place, height, turn, 0.0);
            return Ok(action.unwrap_or_else(|| world.towards(world.place, 0.0, 1.0)));
        }
        if world.holds {
            // Something else was caught.
            return Ok(world.towards(world.place, 0.0, 1.0));
        }
        let stacked = match self.on {
            Some(under) => block.place[2] > world.block(under)?.place[2] + BLOCK / 2.0,
            None => false,
        };
        if stacked {
            return Ok(world.towards([x, y, z + LARGEST[0]], 0.0, 1.0));
        }
        let height = block.place[2].max(FLOOR);
        if world.opening < 0.95 && flat_distance(block.place, world.place) > NEAR {
            return Ok(world.towards([x, y, TRAVEL], 0.0, 1.0));
        }
        let turn = world.turn_to(block.yaw);
        let action = world.approach(block.place, height, turn, 1.0);
        Ok(action.unwrap_or_else(|| world.towards(world.place, 0.0, 0.0)))
    }

    fn degrees(&self) -> &[DegreeOfFreedom] {
        DegreeOfFreedom::END_EFFECTOR
    }
}
