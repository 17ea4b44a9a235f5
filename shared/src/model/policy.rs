//! The ability to move a robot.

use std::borrow::Cow;

use serde::Serialize;

use crate::Result;
use crate::item::Image;

/// Pictures and an instruction to movements.
pub trait Policy: Send + Sync {
    /// Begins to follow an instruction. What does not change from frame to frame is worked out once, here.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for an instruction that does not fit the model, and for action statistics
    /// that are not named where there are several, or are unknown; the message lists those there are.
    fn start(&self, task: &Task) -> Result<Box<dyn Controller + '_>>;
}

/// A policy while it follows one instruction.
///
/// A control loop calls [`act`](Controller::act) with each new frame; it does nothing but compute, and returns as soon
/// as the action is known.
pub trait Controller: Send {
    /// The movement for what is seen now: one number for each of its [`degrees`](Controller::degrees) of freedom.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for a frame or a state that cannot be read.
    fn act(&mut self, seen: &Observation) -> Result<Vec<f64>>;

    /// What the numbers of its actions mean, in order: as many as [`act`](Controller::act) gives, no name twice. They
    /// belong to the task: another data set may be of another robot.
    fn degrees(&self) -> &[DegreeOfFreedom];
}

/// What a policy is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Task {
    /// In words: "pick up the red block".
    pub instruction: String,
    /// Whose action statistics undo the normalisation, where the model was trained on several sets.
    pub unnorm_key: Option<String>,
}

impl From<&str> for Task {
    fn from(instruction: &str) -> Self {
        Self { instruction: instruction.to_string(), unnorm_key: None }
    }
}

/// What is known at one step of a control loop.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// What the camera sees.
    pub frame: &'a Image,
    /// What the robot reports of itself and its surroundings, for policies that read it; empty where it says nothing.
    pub state: &'a [f64],
}

impl<'a> From<&'a Image> for Observation<'a> {
    fn from(frame: &'a Image) -> Self {
        Self { frame, state: &[] }
    }
}

/// One number of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DegreeOfFreedom {
    /// What it moves: `x`, `roll`, `gripper`; `a0`, `a1`, … where nothing says what.
    pub name: Cow<'static, str>,
    /// Its unit: `m`, `rad`, or a range such as `0 closed to 1 open`; none where nothing says which.
    pub unit: Option<&'static str>,
}
