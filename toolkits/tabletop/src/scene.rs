//! The world: what stands on the table, what the gripper does to it, and what it is asked to.

use fauna_shared::generate::Rng;
use fauna_shared::item::Image;
use fauna_shared::{Error, Result};

use super::camera;

/// The side of a block, in metres.
pub(super) const BLOCK: f64 = 0.04;
/// The jaws' distance where the gripper is wide open, in metres.
pub(super) const SPAN: f64 = 0.08;
/// The thickness of a jaw, across, in metres.
pub(super) const JAW: f64 = 0.012;
/// The lowest place of the fingertips over the table, in metres.
pub(super) const FLOOR: f64 = 0.008;
/// From where to where the gripper reaches, to the right and to the back, in metres.
pub(super) const REACH: [(f64, f64); 2] = [(-0.21, 0.21), (-0.19, 0.13)];
/// How high it reaches, in metres.
pub(super) const CEILING: f64 = 0.26;
/// How high a block must be lifted to be picked up, in metres over the table.
const LIFTED: f64 = 0.10;
/// The largest step of place along an axis, in metres, of turn, in radians, and of the opening.
pub(super) const LARGEST: [f64; 3] = [0.03, 0.2, 0.25];
/// How far from the middle of a block the jaws may close to hold it: along them and across, in metres.
const SLACK: f64 = 0.012;
/// How far the turn of the jaws may be off, in radians.
const SKEW: f64 = 0.2;

/// How scenes are set.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Blocks on the table, from 1 (2 for stacking) to 6, no two of one colour.
    pub blocks: usize,
    /// What is asked for.
    pub job: Job,
    /// Steps after which an episode is over.
    pub limit: usize,
    /// Whether a picture is drawn for every step; where it is not, a policy is shown an empty one, which serves those
    /// that read the state.
    pub rendering: bool,
    /// Pixels along a side of a picture, from 16 to 1024.
    pub side: usize,
    /// Whose action statistics undo the normalisation, for models that ask.
    pub unnorm_key: Option<String>,
}

impl Default for Setting {
    fn default() -> Self {
        Self { blocks: 3, job: Job::PickUp, limit: 80, rendering: true, side: 224, unnorm_key: None }
    }
}

/// A kind of task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Lift a block.
    PickUp,
    /// Put a block on another.
    Stack,
    /// Either, as the seed decides.
    Any,
}

/// What is asked for in one scene. Blocks are meant by their place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// "pick up the red block".
    PickUp(usize),
    /// "put the red block on the blue block".
    Stack(usize, usize),
}

/// A block's colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
    Orange,
}

impl Colour {
    /// Every colour, in the order of their numbers in a state.
    pub const ALL: [Self; 6] = [Self::Red, Self::Green, Self::Blue, Self::Yellow, Self::Purple, Self::Orange];

    /// Its name in an instruction.
    pub fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Purple => "purple",
            Self::Orange => "orange",
        }
    }

    pub(super) fn rgb(self) -> [f32; 3] {
        match self {
            Self::Red => [0.86, 0.20, 0.18],
            Self::Green => [0.24, 0.66, 0.32],
            Self::Blue => [0.20, 0.42, 0.85],
            Self::Yellow => [0.96, 0.80, 0.22],
            Self::Purple => [0.56, 0.32, 0.74],
            Self::Orange => [0.95, 0.52, 0.16],
        }
    }
}

/// A block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Block {
    /// Its colour.
    pub colour: Colour,
    /// Its middle, in metres: to the right, to the back, up from the table.
    pub place: [f64; 3],
    /// How it is turned about the vertical, in radians.
    pub yaw: f64,
}

/// The gripper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gripper {
    /// The middle between the fingertips, in metres.
    pub place: [f64; 3],
    /// Roll, pitch and yaw, in radians; the jaws open along its own right where it is not turned.
    pub turn: [f64; 3],
    /// From 0, closed, to 1, wide open.
    pub opening: f64,
    /// Which block it holds.
    pub holds: Option<usize>,
}

/// A scene while it is played.
///
/// ```
/// use fauna_tabletop::{Scene, Setting};
/// let mut scene = Scene::new(3, &Setting::default())?;
/// assert_eq!(scene.state().len(), 8 + 3 * 5);
/// let height = scene.gripper().place[2];
/// scene.step(&[0.0, 0.0, -0.02, 0.0, 0.0, 0.0, 1.0])?;
/// assert!((scene.gripper().place[2] - (height - 0.02)).abs() < 1e-12);
/// assert_eq!(scene.frame().width, 224);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    blocks: Vec<Block>,
    gripper: Gripper,
    goal: Goal,
    side: usize,
}

impl Scene {
    /// The scene of `seed`: the same seed and setting are the same scene.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a setting out of range.
    pub fn new(seed: u64, setting: &Setting) -> Result<Self> {
        let least = if setting.job == Job::PickUp { 1 } else { 2 };
        let most = Colour::ALL.len();
        if !(least..=most).contains(&setting.blocks) {
            return Err(Error::input(format!("{} blocks: {least} to {most} wanted", setting.blocks)));
        }
        if !(16..=1024).contains(&setting.side) {
            return Err(Error::input(format!("pictures of {} pixels: 16 to 1024 wanted", setting.side)));
        }
        let mut random = Rng::new(seed, 0);
        let mut pick = |count: usize| (random.uniform() * count as f64) as usize;
        let (mut colours, mut cells) = (Colour::ALL.to_vec(), (0..12).collect::<Vec<usize>>());
        let drawn: Vec<(Colour, usize)> = (0..setting.blocks)
            .map(|_| (colours.swap_remove(pick(colours.len())), cells.swap_remove(pick(cells.len()))))
            .collect();
        let goal = match (setting.job, pick(2)) {
            (Job::PickUp, _) | (Job::Any, 0) => Goal::PickUp(0),
            _ => Goal::Stack(0, 1),
        };
        let mut near = |middle: f64, by: f64| middle + by * (2.0 * random.uniform() - 1.0);
        // Cells far enough from each other that the open jaws fit between any two blocks.
        let block = |(colour, cell): (Colour, usize)| {
            let (column, row) = ((cell % 4) as f64, (cell / 4) as f64);
            let (x, y) = (near((column - 1.5) * 0.115, 0.012), near((row - 1.0) * 0.115 - 0.035, 0.012));
            Block { colour, place: [x, y, BLOCK / 2.0], yaw: near(0.0, 0.7) }
        };
        let blocks = drawn.into_iter().map(block).collect();
        let gripper = Gripper {
            place: [near(0.0, 0.08), near(-0.03, 0.06), near(0.19, 0.02)],
            turn: [0.0, 0.0, near(0.0, 0.3)],
            opening: 1.0,
            holds: None,
        };
        Ok(Self { blocks, gripper, goal, side: setting.side })
    }

    /// What is asked for, in words.
    pub fn instruction(&self) -> String {
        let name = |index: usize| self.blocks[index].colour.name();
        match self.goal {
            Goal::PickUp(block) => format!("pick up the {} block", name(block)),
            Goal::Stack(block, under) => {
                format!("put the {} block on the {} block", name(block), name(under))
            }
        }
    }

    /// What is asked for.
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
        camera::look(self, self.side)
    }

    /// The scene as numbers: the gripper's x, y, z in metres, its roll, pitch, yaw in radians, its opening from 0 to 1,
    /// and 1 where it holds a block; then for each block the number of its colour, as [`Colour::ALL`] counts, its x, y, z
    /// in metres and its yaw in radians.
    pub fn state(&self) -> Vec<f64> {
        let gripper = &self.gripper;
        let holds = f64::from(u8::from(gripper.holds.is_some()));
        let mut state = [&gripper.place[..], &gripper.turn, &[gripper.opening, holds]].concat();
        for block in &self.blocks {
            state.push(block.colour as usize as f64);
            state.extend(block.place);
            state.push(block.yaw);
        }
        state
    }

    /// One step of the gripper: x, y, z in metres, roll, pitch, yaw in radians, all from where it is, and how far it is to
    /// be open, 0 to 1. Steps larger than it can do are cut; what something stands in the way of is not done.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for other than seven numbers, or one that is not finite.
    pub fn step(&mut self, action: &[f64]) -> Result<()> {
        let action: [f64; 7] = action
            .try_into()
            .map_err(|_| Error::input(format!("an action of {} numbers: seven wanted", action.len())))?;
        if let Some(number) = action.iter().find(|number| !number.is_finite()) {
            return Err(Error::input(format!("an action with {number} in it")));
        }
        let (places, turns) = (&action[..3], &action[3..6]);
        for (axis, by) in places.iter().enumerate() {
            self.move_along(axis, by.clamp(-LARGEST[0], LARGEST[0]));
        }
        for (axis, by) in turns.iter().enumerate() {
            let turned = self.gripper.turn[axis] + by.clamp(-LARGEST[1], LARGEST[1]);
            // The wrist bends half a right angle and turns all around.
            self.gripper.turn[axis] = match axis {
                2 => wrapped(turned),
                _ => turned.clamp(-std::f64::consts::FRAC_PI_4, std::f64::consts::FRAC_PI_4),
            };
        }
        self.open_to(action[6].clamp(0.0, 1.0));
        self.carry();
        Ok(())
    }

    /// Whether what is asked for is done.
    pub fn is_done(&self) -> bool {
        match self.goal {
            Goal::PickUp(block) => {
                self.gripper.holds == Some(block) && self.blocks[block].place[2] - BLOCK / 2.0 >= LIFTED
            }
            Goal::Stack(block, under) => {
                let (top, below) = (&self.blocks[block], &self.blocks[under]);
                self.gripper.holds.is_none()
                    && (top.place[2] - below.place[2] - BLOCK).abs() < 1e-6
                    && flat_distance(top.place, below.place) < BLOCK / 2.0
            }
        }
    }

    fn move_along(&mut self, axis: usize, by: f64) {
        let before = self.gripper.place;
        let bounds = match axis {
            2 => (FLOOR + self.held_depth(), CEILING),
            _ => REACH[axis],
        };
        self.gripper.place[axis] = (before[axis] + by).clamp(bounds.0, bounds.1.max(bounds.0));
        self.carry();
        if self.collides() {
            self.gripper.place = before;
            self.carry();
        }
    }

    /// How far what is held reaches below the fingertips' lowest place.
    fn held_depth(&self) -> f64 {
        if self.gripper.holds.is_some() { BLOCK / 2.0 - FLOOR } else { 0.0 }
    }

    /// Moves the jaws towards `opening`; a block between them is held, and let go where they open.
    fn open_to(&mut self, opening: f64) {
        let grip = BLOCK / SPAN;
        if self.gripper.holds.is_some() {
            // Up to the block's own width they press; further they let go.
            if opening > grip + 0.05 {
                self.let_go();
            } else {
                return;
            }
        }
        let by = (opening - self.gripper.opening).clamp(-LARGEST[2], LARGEST[2]);
        let wanted = self.gripper.opening + by;
        if by < 0.0 && wanted <= grip && self.gripper.opening >= grip {
            if let Some(block) = self.between_the_jaws() {
                self.gripper.opening = grip;
                self.gripper.holds = Some(block);
                return;
            }
            if self.collides_at(wanted) {
                self.gripper.opening = grip;
                return;
            }
        }
        self.gripper.opening = wanted;
    }

    /// The block that closing jaws would hold: between them, at their height, and not too much askew.
    fn between_the_jaws(&self) -> Option<usize> {
        let [x, y, z] = self.gripper.place;
        let upright = self.gripper.turn[..2].iter().all(|turn| turn.abs() < SKEW);
        let fits = |block: &Block| {
            let (along, across) = self.in_jaws(block.place[0] - x, block.place[1] - y);
            let quarter = std::f64::consts::FRAC_PI_2;
            let askew = (block.yaw - self.gripper.turn[2]).rem_euclid(quarter);
            along.abs() < SLACK
                && across.abs() < SLACK
                && (z - block.place[2]).abs() < BLOCK / 2.0
                && askew.min(quarter - askew) < SKEW
        };
        self.blocks.iter().position(fits).filter(|_| upright)
    }

    /// A flat vector along the jaws' opening and across it.
    fn in_jaws(&self, x: f64, y: f64) -> (f64, f64) {
        let (sin, cos) = self.gripper.turn[2].sin_cos();
        (x * cos + y * sin, y * cos - x * sin)
    }

    /// What is let go falls on the table, or on the block that it stands over.
    fn let_go(&mut self) {
        let Some(held) = self.gripper.holds.take() else { return };
        let place = self.blocks[held].place;
        let under = self.blocks.iter().enumerate().filter(|(i, block)| {
            *i != held && flat_distance(block.place, place) < BLOCK * 0.6 && block.place[2] < place[2]
        });
        let top = under.map(|(_, block)| block.place[2] + BLOCK / 2.0).fold(0.0, f64::max);
        self.blocks[held].place[2] = top + BLOCK / 2.0;
    }

    /// What is held goes with the gripper.
    fn carry(&mut self) {
        if let Some(held) = self.gripper.holds {
            let block = &mut self.blocks[held];
            block.place = self.gripper.place;
            block.yaw = self.gripper.turn[2];
        }
    }

    /// Whether a fingertip, or what is held, is where a block is.
    fn collides(&self) -> bool {
        self.collides_at(self.gripper.opening)
    }

    fn collides_at(&self, opening: f64) -> bool {
        let [x, y, z] = self.gripper.place;
        let (sin, cos) = self.gripper.turn[2].sin_cos();
        let out = opening * SPAN / 2.0 + JAW / 2.0;
        let tips = [[x + out * cos, y + out * sin], [x - out * cos, y - out * sin]];
        self.blocks.iter().enumerate().any(|(i, block)| {
            if self.gripper.holds == Some(i) {
                return false;
            }
            let top = block.place[2] + BLOCK / 2.0;
            let pierced = |tip: &[f64; 2]| {
                let (sin, cos) = block.yaw.sin_cos();
                let (dx, dy) = (tip[0] - block.place[0], tip[1] - block.place[1]);
                let (along, across) = (dx * cos + dy * sin, dy * cos - dx * sin);
                let half = BLOCK / 2.0 + JAW / 2.0 - 1e-6;
                along.abs() < half && across.abs() < half && z < top && z > block.place[2] - BLOCK / 2.0
            };
            let bumps = self.gripper.holds.is_some_and(|held| {
                let held = &self.blocks[held];
                flat_distance(held.place, block.place) < BLOCK
                    && (held.place[2] - block.place[2]).abs() < BLOCK - 1e-6
            });
            bumps || tips.iter().any(pierced)
        })
    }
}

/// The distance of two places on the table.
pub(super) fn flat_distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

/// An angle in -π to π.
fn wrapped(angle: f64) -> f64 {
    let whole = std::f64::consts::TAU;
    (angle + whole / 2.0).rem_euclid(whole) - whole / 2.0
}
