//! A scripted expert policy, which reads the state and no image.

use fauna_shared::model::{Controller, DegreeOfFreedom, Observation, Policy, Task};
use fauna_shared::{Error, Result};

use crate::objects::{BLOCK, Colour};
use crate::scene::{
    GRASP_ANGLE, GRASP_DISTANCE, MAX_CHANGE, MIN_HEIGHT, PICK_UP, STACK, horizontal_distance,
};

/// Number of values of the gripper in a state, and of each block.
const GRIPPER_STATE: usize = 8;
const BLOCK_STATE: usize = 5;

/// Height of horizontal movements, in metres.
const TRAVEL_HEIGHT: f64 = 0.15;
/// Tolerances of position, in metres, and of angle, in radians.
const POSITION_TOLERANCE: f64 = 0.004;
const ANGLE_TOLERANCE: f64 = 0.03;

/// The scripted expert: over the block, down, close, up, and for stacking over the other block, down, open, away. It reads
/// [`Scene::state`](crate::Scene::state) and can take over at any state.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expert;

/// A parsed instruction: a block, and the block to put it on.
struct Instruction {
    block: Colour,
    on: Option<Colour>,
}

impl Policy for Expert {
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for an unknown instruction.
    fn start(&self, task: &Task) -> Result<Box<dyn Controller + '_>> {
        Ok(Box::new(parse(&task.instruction)?))
    }
}

/// Parses an instruction in any of the ways in which scenes give it.
fn parse(instruction: &str) -> Result<Instruction> {
    let colour = |name: &str| Colour::ALL.into_iter().find(|colour| colour.name() == name);
    let instruction = instruction.trim().to_lowercase();
    let picked = PICK_UP.iter().find_map(|[before, after]| {
        let block = colour(instruction.strip_prefix(before)?.strip_suffix(after)?)?;
        Some(Instruction { block, on: None })
    });
    let stacked = || {
        STACK.iter().find_map(|[before, between, after]| {
            let (block, under) =
                instruction.strip_prefix(before)?.strip_suffix(after)?.split_once(between)?;
            Some(Instruction { block: colour(block)?, on: Some(colour(under)?) })
        })
    };
    picked.or_else(stacked).ok_or_else(|| {
        Error::input(format!("the expert does not know the instruction \"{instruction:.80}\""))
            .hint("known: pick up the COLOUR block; put the COLOUR block on the COLOUR block")
    })
}

/// Position and rotation of a block.
struct BlockPose {
    position: [f64; 3],
    yaw: f64,
}

/// A parsed state.
struct State<'a> {
    position: [f64; 3],
    yaw: f64,
    opening: f64,
    holds: bool,
    blocks: &'a [f64],
}

impl<'a> State<'a> {
    fn of(state: &'a [f64]) -> Result<Self> {
        let blocks =
            state.get(GRIPPER_STATE..).filter(|blocks| blocks.len() % BLOCK_STATE == 0).ok_or_else(|| {
                Error::input(format!("expected a state of the table-top, got {} numbers", state.len()))
            })?;
        Ok(Self {
            position: [state[0], state[1], state[2]],
            yaw: state[5],
            opening: state[6],
            holds: state[7] > 0.5,
            blocks,
        })
    }

    fn block(&self, colour: Colour) -> Result<BlockPose> {
        let number = colour as usize as f64;
        let found = self.blocks.chunks_exact(BLOCK_STATE).find(|block| block[0] == number);
        let block =
            found.ok_or_else(|| Error::input(format!("there is no {} block on the table", colour.name())))?;
        Ok(BlockPose { position: [block[1], block[2], block[3]], yaw: block[4] })
    }

    /// The smallest rotation that aligns the jaws with a block rotated by `yaw`.
    fn turn_to(&self, yaw: f64) -> f64 {
        let quarter = std::f64::consts::FRAC_PI_2;
        let turn = (yaw - self.yaw).rem_euclid(quarter);
        if turn > quarter / 2.0 { turn - quarter } else { turn }
    }

    /// The action towards `position` by a rotation `turn`, with the target `opening`.
    fn towards(&self, position: [f64; 3], turn: f64, opening: f64) -> Vec<f64> {
        let step = |axis: usize| (position[axis] - self.position[axis]).clamp(-MAX_CHANGE[0], MAX_CHANGE[0]);
        vec![step(0), step(1), step(2), 0.0, 0.0, turn.clamp(-MAX_CHANGE[1], MAX_CHANGE[1]), opening]
    }

    /// The action to a point over `target` first, then down to `height`; `None` when it is there.
    fn approach(&self, target: [f64; 3], height: f64, turn: f64, opening: f64) -> Option<Vec<f64>> {
        let [x, y, z] = self.position;
        let off = horizontal_distance(self.position, target);
        if off > POSITION_TOLERANCE || turn.abs() > ANGLE_TOLERANCE {
            // Up first, if it is low between the blocks.
            let aside = if z < TRAVEL_HEIGHT - 0.05 && off > 0.02 {
                [x, y, TRAVEL_HEIGHT]
            } else {
                [target[0], target[1], TRAVEL_HEIGHT]
            };
            return Some(self.towards(aside, turn, opening));
        }
        let down = [target[0], target[1], height];
        ((z - height).abs() > POSITION_TOLERANCE).then(|| self.towards(down, turn, opening))
    }
}

impl Controller for Instruction {
    fn act(&mut self, observation: &Observation) -> Result<Vec<f64>> {
        let state = State::of(observation.state)?;
        let block = state.block(self.block)?;
        let [x, y, z] = state.position;
        let held = state.holds && horizontal_distance(block.position, state.position) < POSITION_TOLERANCE;
        if held {
            let Some(under) = self.on else {
                return Ok(state.towards([x, y, z + MAX_CHANGE[0]], 0.0, 0.0));
            };
            let under = state.block(under)?;
            let height = under.position[2] + BLOCK + POSITION_TOLERANCE / 2.0;
            let turn = state.turn_to(under.yaw);
            let action = state.approach(under.position, height, turn, 0.0);
            return Ok(action.unwrap_or_else(|| state.towards(state.position, 0.0, 1.0)));
        }
        if state.holds {
            // It holds another block.
            return Ok(state.towards(state.position, 0.0, 1.0));
        }
        let stacked = match self.on {
            Some(under) => block.position[2] > state.block(under)?.position[2] + BLOCK / 2.0,
            None => false,
        };
        if stacked {
            return Ok(state.towards([x, y, z + MAX_CHANGE[0]], 0.0, 1.0));
        }
        let height = block.position[2].max(MIN_HEIGHT);
        if state.opening < 0.95 && horizontal_distance(block.position, state.position) > POSITION_TOLERANCE {
            return Ok(state.towards([x, y, TRAVEL_HEIGHT], 0.0, 1.0));
        }
        let turn = state.turn_to(block.yaw);
        let action = state.approach(block.position, height, turn, 1.0);
        Ok(action.unwrap_or_else(|| state.towards(state.position, 0.0, 0.0)))
    }

    fn degrees(&self) -> &[DegreeOfFreedom] {
        DegreeOfFreedom::END_EFFECTOR
    }
}

/// An expert that picks up blocks and whose actions change little where the state changes little, so that they are easier to
/// imitate than those of [`Expert`]: it goes lower the nearer it is to the block and corrects its position and rotation on
/// the way down, where [`Expert`] stands over the block exactly before it descends.
///
/// ```
/// use fauna_tabletop::{SceneConfig, SmoothExpert, evaluate};
/// let config = SceneConfig { render: false, ..SceneConfig::default() };
/// assert_eq!(evaluate(&SmoothExpert::default(), 0..10, &config)?.successes, 10);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SmoothExpert {
    /// Horizontal distance from the block, in metres, within which it turns the jaws; farther away the rotation of the block
    /// has not to be seen.
    pub turns_within: f64,
}

impl Default for SmoothExpert {
    fn default() -> Self {
        Self { turns_within: f64::INFINITY }
    }
}

/// A block to be picked up.
struct PickUp {
    block: Colour,
    turns_within: f64,
}

impl Policy for SmoothExpert {
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for an unknown instruction, or one to stack blocks.
    fn start(&self, task: &Task) -> Result<Box<dyn Controller + '_>> {
        match parse(&task.instruction)? {
            Instruction { block, on: None } => {
                Ok(Box::new(PickUp { block, turns_within: self.turns_within }))
            }
            _ => Err(Error::input("the smooth expert does not stack").hint("Expert does")),
        }
    }
}

/// Distances in metres and angles in radians within which it descends fully, and the height that it keeps for each metre and
/// radian more.
const FUNNEL: [(f64, f64); 2] = [(0.006, 5.0), (0.08, 0.6)];
/// Share of what a grasp tolerates within which it begins to close the jaws, and within which it goes on.
const CLOSING: [f64; 2] = [0.6, 0.95];
/// Opening below which the jaws may not descend on a block.
const OPEN: f64 = 0.8;

impl Controller for PickUp {
    fn act(&mut self, observation: &Observation) -> Result<Vec<f64>> {
        let state = State::of(observation.state)?;
        let block = state.block(self.block)?;
        let [x, y, z] = state.position;
        let off = horizontal_distance(block.position, state.position);
        if state.holds {
            let is_it = off < POSITION_TOLERANCE;
            let height = if is_it { z + MAX_CHANGE[0] } else { z };
            return Ok(state.towards([x, y, height], 0.0, if is_it { 0.0 } else { 1.0 }));
        }
        let turn = state.turn_to(block.yaw);
        let height = block.position[2].max(MIN_HEIGHT);
        let share = if state.opening > OPEN { CLOSING[0] } else { CLOSING[1] };
        let fits = off < share * GRASP_DISTANCE && turn.abs() < share * GRASP_ANGLE;
        if fits && (z - height).abs() < BLOCK / 4.0 {
            return Ok(state.towards(state.position, 0.0, 0.0));
        }
        let over = [off, turn.abs()].into_iter().zip(FUNNEL).map(|(by, (free, steep))| (by - free) * steep);
        let lowest = height + over.fold(0.0, f64::max);
        let lowest = if state.opening > OPEN { lowest } else { lowest.max(z) };
        let turn = if off < self.turns_within { turn } else { 0.0 };
        Ok(state.towards([block.position[0], block.position[1], lowest.min(TRAVEL_HEIGHT)], turn, 1.0))
    }

    fn degrees(&self) -> &[DegreeOfFreedom] {
        DegreeOfFreedom::END_EFFECTOR
    }
}
