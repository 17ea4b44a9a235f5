//! Scenes: blocks, a gripper, a goal, and the rules by which actions change them.

use fauna_shared::generate::Rng;
use fauna_shared::item::Image;
use fauna_shared::{Error, Result};

use crate::camera;
use crate::objects::{BLOCK, Block, Colour, Gripper, JAW, SPAN};

/// Minimum height of the fingertips, in metres.
pub(crate) const MIN_HEIGHT: f64 = 0.008;
/// Workspace of the gripper in x and y, in metres.
const WORKSPACE: [(f64, f64); 2] = [(-0.21, 0.21), (-0.19, 0.13)];
/// Maximum height of the fingertips, in metres.
const MAX_HEIGHT: f64 = 0.26;
/// Height in metres from which a block counts as picked up.
const PICKED_UP_HEIGHT: f64 = 0.10;
/// Maximum change per step: of the position along an axis in metres, of the rotation in radians, of the opening.
pub(crate) const MAX_CHANGE: [f64; 3] = [0.03, 0.2, 0.25];
/// Maximum distance of the jaws from the centre of a block to grasp it, along and across them, in metres.
pub(crate) const GRASP_DISTANCE: f64 = 0.012;
/// Maximum angle between the jaws and a block to grasp it, in radians.
pub(crate) const GRASP_ANGLE: f64 = 0.2;

/// Options of scenes and episodes.
#[derive(Debug, Clone, PartialEq)]
pub struct SceneConfig {
    /// Number of blocks, each of another colour: from 1 (2 for stacking) to 6.
    pub blocks: usize,
    /// Kind of task.
    pub task: TaskKind,
    /// Maximum number of steps of an episode.
    pub max_steps: usize,
    /// Whether an image is rendered for every step; if not, policies get a black one, which is enough for those that read
    /// the state.
    pub render: bool,
    /// Height and width of images in pixels, from 16 to 1024.
    pub image_size: usize,
    /// Where the camera is.
    pub view: View,
    /// Words of the instruction.
    pub wording: Wording,
    /// Data set whose action statistics unnormalise the actions, for models with several.
    pub unnorm_key: Option<String>,
}

impl Default for SceneConfig {
    fn default() -> Self {
        Self {
            blocks: 3,
            task: TaskKind::PickUp,
            max_steps: 80,
            render: true,
            image_size: 224,
            view: View::Fixed,
            wording: Wording::Plain,
            unnorm_key: None,
        }
    }
}

/// A kind of task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Pick up a block.
    PickUp,
    /// Put a block on another.
    Stack,
    /// Either of them, by the seed.
    Any,
}

/// Where the camera is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// In front of the table, which it shows whole.
    Fixed,
    /// On the carriage of the gripper: it follows the gripper along x and y, and neither lowers nor turns with it.
    Carriage,
}

/// Words of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wording {
    /// "pick up the red block".
    Plain,
    /// One of several ways to say it, by the seed: "grab the red cube".
    Varied,
}

/// Ways to say what to pick up, with the colour between the two parts.
pub(crate) const PICK_UP: [[&str; 2]; 8] = [
    ["pick up the ", " block"],
    ["pick up the ", " cube"],
    ["grasp the ", " block"],
    ["grab the ", " cube"],
    ["lift the ", " block"],
    ["take the ", " cube"],
    ["pick the ", " block up"],
    ["get hold of the ", " cube"],
];
/// Ways to say what to put on what, with the colours between the three parts.
pub(crate) const STACK: [[&str; 3]; 4] = [
    ["put the ", " block on the ", " block"],
    ["place the ", " cube on the ", " cube"],
    ["stack the ", " block on the ", " block"],
    ["set the ", " cube on top of the ", " cube"],
];

/// Goal of a scene, with the indices of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// "pick up the red block".
    PickUp(usize),
    /// "put the red block on the blue block".
    Stack(usize, usize),
}

/// A scene.
///
/// ```
/// use fauna_tabletop::{Scene, SceneConfig};
/// let mut scene = Scene::new(3, &SceneConfig::default())?;
/// assert_eq!(scene.state().len(), 8 + 3 * 5);
/// let height = scene.gripper().position[2];
/// scene.step(&[0.0, 0.0, -0.02, 0.0, 0.0, 0.0, 1.0])?;
/// assert!((scene.gripper().position[2] - (height - 0.02)).abs() < 1e-12);
/// assert_eq!(scene.frame().width, 224);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    blocks: Vec<Block>,
    gripper: Gripper,
    goal: Goal,
    image_size: usize,
    view: View,
    /// Index of the way to say the instruction.
    phrase: usize,
}

impl Scene {
    /// Creates the scene of `seed`; the same seed and options give the same scene.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for an option out of range.
    pub fn new(seed: u64, config: &SceneConfig) -> Result<Self> {
        let least = if config.task == TaskKind::PickUp { 1 } else { 2 };
        let most = Colour::ALL.len();
        if !(least..=most).contains(&config.blocks) {
            return Err(Error::input(format!("expected {least} to {most} blocks, got {}", config.blocks)));
        }
        if !(16..=1024).contains(&config.image_size) {
            return Err(Error::input(format!(
                "expected an image size of 16 to 1024 pixels, got {}",
                config.image_size
            )));
        }
        let mut random = Rng::new(seed, 0);
        let mut pick = |count: usize| (random.uniform() * count as f64) as usize;
        let (mut colours, mut cells) = (Colour::ALL.to_vec(), (0..12).collect::<Vec<usize>>());
        let drawn: Vec<(Colour, usize)> = (0..config.blocks)
            .map(|_| (colours.swap_remove(pick(colours.len())), cells.swap_remove(pick(cells.len()))))
            .collect();
        let goal = match (config.task, pick(2)) {
            (TaskKind::PickUp, _) | (TaskKind::Any, 0) => Goal::PickUp(0),
            _ => Goal::Stack(0, 1),
        };
        let mut near = |middle: f64, by: f64| middle + by * (2.0 * random.uniform() - 1.0);
        // The grid leaves room for the open jaws between any two blocks.
        let block = |(colour, cell): (Colour, usize)| {
            let (column, row) = ((cell % 4) as f64, (cell / 4) as f64);
            let (x, y) = (near((column - 1.5) * 0.115, 0.012), near((row - 1.0) * 0.115 - 0.035, 0.012));
            Block { colour, position: [x, y, BLOCK / 2.0], yaw: near(0.0, 0.7) }
        };
        let blocks = drawn.into_iter().map(block).collect();
        let gripper = Gripper {
            position: [near(0.0, 0.08), near(-0.03, 0.06), near(0.19, 0.02)],
            rotation: [0.0, 0.0, near(0.0, 0.3)],
            opening: 1.0,
            held_block: None,
        };
        let ways = match goal {
            Goal::PickUp(_) => PICK_UP.len(),
            Goal::Stack(..) => STACK.len(),
        };
        let phrase = match config.wording {
            Wording::Plain => 0,
            Wording::Varied => (random.uniform() * ways as f64) as usize,
        };
        Ok(Self { blocks, gripper, goal, image_size: config.image_size, view: config.view, phrase })
    }

    /// The instruction: "pick up the red block".
    pub fn instruction(&self) -> String {
        let name = |index: usize| self.blocks[index].colour.name();
        match self.goal {
            Goal::PickUp(block) => {
                let [before, after] = PICK_UP[self.phrase];
                format!("{before}{}{after}", name(block))
            }
            Goal::Stack(block, under) => {
                let [before, between, after] = STACK[self.phrase];
                format!("{before}{}{between}{}{after}", name(block), name(under))
            }
        }
    }

    /// The goal.
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// The blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The gripper.
    pub fn gripper(&self) -> &Gripper {
        &self.gripper
    }

    /// What the camera sees, a square picture.
    pub fn frame(&self) -> Image {
        camera::render(&self.blocks, &self.gripper, self.view, self.image_size)
    }

    /// The state: x, y, z of the gripper in metres, its roll, pitch, yaw in radians, its opening from 0 to 1, and 1 if it
    /// holds a block, else 0; then for each block the index of its colour in [`Colour::ALL`], its x, y, z in metres and its
    /// yaw in radians.
    pub fn state(&self) -> Vec<f64> {
        let gripper = &self.gripper;
        let holds = f64::from(u8::from(gripper.held_block.is_some()));
        let mut state = [&gripper.position[..], &gripper.rotation, &[gripper.opening, holds]].concat();
        for block in &self.blocks {
            state.push(block.colour as usize as f64);
            state.extend(block.position);
            state.push(block.yaw);
        }
        state
    }

    /// Takes an action: changes of x, y, z in metres and of roll, pitch, yaw in radians, and the target opening from 0 to 1.
    /// Changes are clipped to what the gripper can do in a step; a movement into an object is not made.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for other than seven numbers, or one that is not finite.
    pub fn step(&mut self, action: &[f64]) -> Result<()> {
        let action: [f64; 7] = action
            .try_into()
            .map_err(|_| Error::input(format!("expected an action of 7 numbers, got {}", action.len())))?;
        if let Some(number) = action.iter().find(|number| !number.is_finite()) {
            return Err(Error::input(format!("an action must be finite, got {number}")));
        }
        let (places, turns) = (&action[..3], &action[3..6]);
        for (axis, by) in places.iter().enumerate() {
            self.move_along(axis, by.clamp(-MAX_CHANGE[0], MAX_CHANGE[0]));
        }
        for (axis, by) in turns.iter().enumerate() {
            let turned = self.gripper.rotation[axis] + by.clamp(-MAX_CHANGE[1], MAX_CHANGE[1]);
            // Roll and pitch are limited to 45 degrees.
            self.gripper.rotation[axis] = match axis {
                2 => wrap_angle(turned),
                _ => turned.clamp(-std::f64::consts::FRAC_PI_4, std::f64::consts::FRAC_PI_4),
            };
        }
        self.open_to(action[6].clamp(0.0, 1.0));
        self.carry();
        Ok(())
    }

    /// Whether the goal is reached.
    pub fn is_done(&self) -> bool {
        match self.goal {
            Goal::PickUp(block) => {
                self.gripper.held_block == Some(block)
                    && self.blocks[block].position[2] - BLOCK / 2.0 >= PICKED_UP_HEIGHT
            }
            Goal::Stack(block, under) => {
                let (top, below) = (&self.blocks[block], &self.blocks[under]);
                self.gripper.held_block.is_none()
                    && (top.position[2] - below.position[2] - BLOCK).abs() < 1e-6
                    && horizontal_distance(top.position, below.position) < BLOCK / 2.0
            }
        }
    }

    fn move_along(&mut self, axis: usize, by: f64) {
        let before = self.gripper.position;
        let bounds = match axis {
            2 => (MIN_HEIGHT + self.held_depth(), MAX_HEIGHT),
            _ => WORKSPACE[axis],
        };
        self.gripper.position[axis] = (before[axis] + by).clamp(bounds.0, bounds.1.max(bounds.0));
        self.carry();
        if self.collides() {
            self.gripper.position = before;
            self.carry();
        }
    }

    /// How far a held block reaches below the minimum height of the fingertips.
    fn held_depth(&self) -> f64 {
        if self.gripper.held_block.is_some() { BLOCK / 2.0 - MIN_HEIGHT } else { 0.0 }
    }

    /// Moves the jaws towards `opening`; closing grasps a block between them, opening releases it.
    fn open_to(&mut self, opening: f64) {
        let grip = BLOCK / SPAN;
        if self.gripper.held_block.is_some() {
            // The block is released once the jaws are wider than it.
            if opening > grip + 0.05 {
                self.release();
            } else {
                return;
            }
        }
        let by = (opening - self.gripper.opening).clamp(-MAX_CHANGE[2], MAX_CHANGE[2]);
        let wanted = self.gripper.opening + by;
        if by < 0.0 && wanted <= grip && self.gripper.opening >= grip {
            if let Some(block) = self.between_the_jaws() {
                self.gripper.opening = grip;
                self.gripper.held_block = Some(block);
                return;
            }
            if self.collides_at(wanted) {
                self.gripper.opening = grip;
                return;
            }
        }
        self.gripper.opening = wanted;
    }

    /// The block that closing jaws would grasp: between them, at their height, and aligned.
    fn between_the_jaws(&self) -> Option<usize> {
        let [x, y, z] = self.gripper.position;
        let upright = self.gripper.rotation[..2].iter().all(|turn| turn.abs() < GRASP_ANGLE);
        let fits = |block: &Block| {
            let (along, across) = self.in_jaws(block.position[0] - x, block.position[1] - y);
            let quarter = std::f64::consts::FRAC_PI_2;
            let askew = (block.yaw - self.gripper.rotation[2]).rem_euclid(quarter);
            along.abs() < GRASP_DISTANCE
                && across.abs() < GRASP_DISTANCE
                && (z - block.position[2]).abs() < BLOCK / 2.0
                && askew.min(quarter - askew) < GRASP_ANGLE
        };
        self.blocks.iter().position(fits).filter(|_| upright)
    }

    /// A horizontal vector in the frame of the jaws: along their opening and across it.
    fn in_jaws(&self, x: f64, y: f64) -> (f64, f64) {
        let (sin, cos) = self.gripper.rotation[2].sin_cos();
        (x * cos + y * sin, y * cos - x * sin)
    }

    /// Releases the held block, which falls on the table or on the block under it.
    fn release(&mut self) {
        let Some(held) = self.gripper.held_block.take() else { return };
        let place = self.blocks[held].position;
        let under = self.blocks.iter().enumerate().filter(|(i, block)| {
            *i != held
                && horizontal_distance(block.position, place) < BLOCK * 0.6
                && block.position[2] < place[2]
        });
        let top = under.map(|(_, block)| block.position[2] + BLOCK / 2.0).fold(0.0, f64::max);
        self.blocks[held].position[2] = top + BLOCK / 2.0;
    }

    /// Moves the held block with the gripper.
    fn carry(&mut self) {
        if let Some(held) = self.gripper.held_block {
            let block = &mut self.blocks[held];
            block.position = self.gripper.position;
            block.yaw = self.gripper.rotation[2];
        }
    }

    /// Whether a fingertip or the held block is inside of a block.
    fn collides(&self) -> bool {
        self.collides_at(self.gripper.opening)
    }

    fn collides_at(&self, opening: f64) -> bool {
        let [x, y, z] = self.gripper.position;
        let (sin, cos) = self.gripper.rotation[2].sin_cos();
        let out = opening * SPAN / 2.0 + JAW / 2.0;
        let tips = [[x + out * cos, y + out * sin], [x - out * cos, y - out * sin]];
        self.blocks.iter().enumerate().any(|(i, block)| {
            if self.gripper.held_block == Some(i) {
                return false;
            }
            let top = block.position[2] + BLOCK / 2.0;
            let pierced = |tip: &[f64; 2]| {
                let (sin, cos) = block.yaw.sin_cos();
                let (dx, dy) = (tip[0] - block.position[0], tip[1] - block.position[1]);
                let (along, across) = (dx * cos + dy * sin, dy * cos - dx * sin);
                let half = BLOCK / 2.0 + JAW / 2.0 - 1e-6;
                along.abs() < half && across.abs() < half && z < top && z > block.position[2] - BLOCK / 2.0
            };
            let bumps = self.gripper.held_block.is_some_and(|held| {
                let held = &self.blocks[held];
                horizontal_distance(held.position, block.position) < BLOCK
                    && (held.position[2] - block.position[2]).abs() < BLOCK - 1e-6
            });
            bumps || tips.iter().any(pierced)
        })
    }
}

/// Horizontal distance of two positions.
pub(crate) fn horizontal_distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

/// An angle in -π to π.
fn wrap_angle(angle: f64) -> f64 {
    let whole = std::f64::consts::TAU;
    (angle + whole / 2.0).rem_euclid(whole) - whole / 2.0
}
