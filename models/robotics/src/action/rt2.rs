//! RT-2's action format: eight integers as text.

use fauna_shared::{Error, Result};

/// Number of integers of an action: the termination flag and seven degrees of freedom.
const NUMBERS: usize = 8;
/// Names of the degrees of freedom in error messages.
const NAMES: [&str; 7] = ["Δx", "Δy", "Δz", "Δroll", "Δpitch", "Δyaw", "gripper"];
/// Number of bins of each.
const BINS: u16 = 256;

/// An action of RT-2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rt2Action {
    /// Whether the episode ends.
    pub terminate: bool,
    /// Changes of x, y, z, roll, pitch and yaw, and the opening of the gripper, in the units of the ranges.
    pub degrees: [f64; 7],
}

/// RT-2's action tokenizer: the termination flag, then each of seven degrees of freedom in one of 256 uniform bins of its
/// range, as text (Brohan et al. 2023, section 3.2).
///
/// The ranges depend on the robot and were not released; decoded values are the centers of the bins.
///
/// ```
/// use fauna_robotics::action::Rt2Codec;
/// let codec = Rt2Codec::new([-0.1, -0.1, -0.1, -0.5, -0.5, -0.5, 0.0], [0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 1.0])?;
/// let action = codec.parse("1 128 91 241 5 101 127 217")?;
/// assert!(action.terminate);
/// assert!((action.degrees[1] + 0.1 - 91.5 / 256.0 * 0.2).abs() < 1e-12);
/// assert_eq!(codec.text(&action)?, "1 128 91 241 5 101 127 217");
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rt2Codec {
    low: [f64; 7],
    high: [f64; 7],
}

impl Rt2Codec {
    /// Creates a codec with the ranges `low` to `high`, in the order x, y, z, roll, pitch, yaw, gripper.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for an invalid range, by its name.
    pub fn new(low: [f64; 7], high: [f64; 7]) -> Result<Self> {
        let bad = (0..7).find(|i| !(low[*i] < high[*i] && (high[*i] - low[*i]).is_finite()));
        match bad {
            None => Ok(Self { low, high }),
            Some(i) => Err(Error::input(format!("invalid range of {}: {} to {}", NAMES[i], low[i], high[i]))),
        }
    }

    /// Encodes `action` as eight integers. Values outside their range are clipped.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a NaN, by its name.
    pub fn encode(&self, action: &Rt2Action) -> Result<[u16; NUMBERS]> {
        let mut numbers = [u16::from(action.terminate); NUMBERS];
        for (i, degree) in action.degrees.iter().enumerate() {
            if degree.is_nan() {
                return Err(Error::input(format!("{} is not a number", NAMES[i])));
            }
            let share = (degree - self.low[i]) / (self.high[i] - self.low[i]);
            let bin = (share * f64::from(BINS)).floor().clamp(0.0, f64::from(BINS - 1));
            numbers[i + 1] = bin as u16;
        }
        Ok(numbers)
    }

    /// Decodes eight integers.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a number out of range, by its name.
    pub fn decode(&self, numbers: &[u16; NUMBERS]) -> Result<Rt2Action> {
        if numbers[0] > 1 {
            let message =
                format!("terminate is {}, expected 0 (continue) or 1 (end of the episode)", numbers[0]);
            return Err(Error::input(message));
        }
        let mut degrees = [0.0; 7];
        for (i, degree) in degrees.iter_mut().enumerate() {
            let bin = numbers[i + 1];
            if bin >= BINS {
                return Err(Error::input(format!(
                    "{} is {bin}, expected a bin from 0 to {}",
                    NAMES[i],
                    BINS - 1
                )));
            }
            let share = (f64::from(bin) + 0.5) / f64::from(BINS);
            *degree = self.low[i] + share * (self.high[i] - self.low[i]);
        }
        Ok(Rt2Action { terminate: numbers[0] == 1, degrees })
    }

    /// Formats `action` like the model: `terminate Δx Δy Δz Δroll Δpitch Δyaw gripper`.
    ///
    /// # Errors
    /// As [`encode`](Rt2Codec::encode).
    pub fn text(&self, action: &Rt2Action) -> Result<String> {
        Ok(self.encode(action)?.map(|number| number.to_string()).join(" "))
    }

    /// Parses an action in the format of the model.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for anything but eight integers in their ranges.
    pub fn parse(&self, text: &str) -> Result<Rt2Action> {
        let words: Vec<&str> = text.split_whitespace().take(NUMBERS + 1).collect();
        if words.len() != NUMBERS {
            let found = match words.len() > NUMBERS {
                true => format!("more than {NUMBERS} numbers"),
                false => format!("{} numbers", words.len()),
            };
            return Err(Error::input(format!("{found} in an action"))
                .hint("expected terminate Δx Δy Δz Δroll Δpitch Δyaw gripper"));
        }
        let mut numbers = [0; NUMBERS];
        for (i, word) in words.iter().enumerate() {
            let name = if i == 0 { "terminate" } else { NAMES[i - 1] };
            numbers[i] = word
                .parse()
                .map_err(|_| Error::input(format!("{name} is \"{word:.20}\", expected an integer")))?;
        }
        self.decode(&numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codec() -> Rt2Codec {
        Rt2Codec::new([-1.0; 7], [1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]).unwrap()
    }

    #[test]
    fn every_bin_comes_back_to_itself() {
        for bin in 0..BINS {
            let numbers = [1, bin, bin, bin, bin, bin, bin, 255 - bin];
            let action = codec().decode(&numbers).unwrap();
            assert_eq!(codec().encode(&action).unwrap(), numbers);
        }
    }

    #[test]
    fn what_lies_outside_is_brought_to_the_end() {
        let action = Rt2Action { terminate: false, degrees: [-9.0, 2.0, f64::INFINITY, 0.0, 0.0, 0.0, 1.0] };
        assert_eq!(codec().encode(&action).unwrap(), [0, 0, 255, 255, 128, 128, 128, 255]);
    }

    #[test]
    fn what_is_no_action_is_refused_by_name() {
        let cases = [
            ("", "0 numbers in an action"),
            ("1 2 3", "3 numbers in an action"),
            ("1 2 3 4 5 6 7 8 9 10", "more than 8 numbers in an action"),
            ("2 0 0 0 0 0 0 0", "terminate is 2, expected 0 (continue) or 1 (end of the episode)"),
            ("0 0 256 0 0 0 0 0", "Δy is 256, expected a bin from 0 to 255"),
            ("0 0 0 0 0 -1 0 0", "Δpitch is \"-1\", expected an integer"),
            ("0 0 0 0 0 0 0 open", "gripper is \"open\", expected an integer"),
        ];
        for (text, message) in cases {
            assert_eq!(codec().parse(text).unwrap_err().message(), message);
        }
        let nan = Rt2Action { terminate: false, degrees: [0.0, 0.0, 0.0, f64::NAN, 0.0, 0.0, 0.0] };
        assert_eq!(codec().encode(&nan).unwrap_err().message(), "Δroll is not a number");
        assert!(Rt2Codec::new([0.0; 7], [0.0; 7]).is_err());
    }
}
