//! RT-2's own form of an action: eight whole numbers in plain text.

use fauna_shared::{Error, Result};

/// Numbers of an action in words: whether it ends, and seven degrees of freedom.
const NUMBERS: usize = 8;
/// The names of the seven, as errors give them.
const NAMES: [&str; 7] = ["Δx", "Δy", "Δz", "Δroll", "Δpitch", "Δyaw", "gripper"];
/// Bins of each.
const BINS: u16 = 256;

/// One action of RT-2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rt2Action {
    /// Whether the episode is over.
    pub terminate: bool,
    /// Steps of x, y and z, of roll, pitch and yaw, and how far the gripper is to be open, in the units of the codec's
    /// ranges.
    pub degrees: [f64; 7],
}

/// RT-2's action tokenizer: each of seven numbers in one of 256 even bins of its own range, and before them whether the
/// episode ends, as text that any language model can write (Brohan et al. 2023, section 3.2).
///
/// The ranges belong to the robot and are not released; an action that is decoded is the middle of its bins.
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
    /// Over the ranges `low` to `high`, in the order x, y, z, roll, pitch, yaw, gripper.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a range that is none, by its name.
    pub fn new(low: [f64; 7], high: [f64; 7]) -> Result<Self> {
        let bad = (0..7).find(|i| !(low[*i] < high[*i] && (high[*i] - low[*i]).is_finite()));
        match bad {
            None => Ok(Self { low, high }),
            Some(i) => {
                Err(Error::input(format!("{} from {} to {}: a range is wanted", NAMES[i], low[i], high[i])))
            }
        }
    }

    /// The eight numbers of `action`. What lies outside its range is brought to its end.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a degree that is no number, by its name.
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

    /// The action that eight numbers mean.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a number out of range, by its name.
    pub fn decode(&self, numbers: &[u16; NUMBERS]) -> Result<Rt2Action> {
        if numbers[0] > 1 {
            let message = format!("terminate is {}: 0 (go on) or 1 (the episode is over) wanted", numbers[0]);
            return Err(Error::input(message));
        }
        let mut degrees = [0.0; 7];
        for (i, degree) in degrees.iter_mut().enumerate() {
            let bin = numbers[i + 1];
            if bin >= BINS {
                return Err(Error::input(format!(
                    "{} is {bin}: a bin of 0 to {} wanted",
                    NAMES[i],
                    BINS - 1
                )));
            }
            let share = (f64::from(bin) + 0.5) / f64::from(BINS);
            *degree = self.low[i] + share * (self.high[i] - self.low[i]);
        }
        Ok(Rt2Action { terminate: numbers[0] == 1, degrees })
    }

    /// `action` as the model writes it: `terminate Δx Δy Δz Δroll Δpitch Δyaw gripper`.
    ///
    /// # Errors
    /// As [`encode`](Rt2Codec::encode).
    pub fn text(&self, action: &Rt2Action) -> Result<String> {
        Ok(self.encode(action)?.map(|number| number.to_string()).join(" "))
    }

    /// The action that a model wrote.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for anything but eight numbers in their ranges, with what is wrong.
    pub fn parse(&self, text: &str) -> Result<Rt2Action> {
        let words: Vec<&str> = text.split_whitespace().take(NUMBERS + 1).collect();
        if words.len() != NUMBERS {
            let found = match words.len() > NUMBERS {
                true => format!("more than {NUMBERS} numbers"),
                false => format!("{} numbers", words.len()),
            };
            return Err(Error::input(format!("{found} in an action"))
                .hint("wanted: terminate Δx Δy Δz Δroll Δpitch Δyaw gripper"));
        }
        let mut numbers = [0; NUMBERS];
        for (i, word) in words.iter().enumerate() {
            let name = if i == 0 { "terminate" } else { NAMES[i - 1] };
            numbers[i] = word
                .parse()
                .map_err(|_| Error::input(format!("{name} is \"{word:.20}\": a whole number wanted")))?;
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
            ("2 0 0 0 0 0 0 0", "terminate is 2: 0 (go on) or 1 (the episode is over) wanted"),
            ("0 0 256 0 0 0 0 0", "Δy is 256: a bin of 0 to 255 wanted"),
            ("0 0 0 0 0 -1 0 0", "Δpitch is \"-1\": a whole number wanted"),
            ("0 0 0 0 0 0 0 open", "gripper is \"open\": a whole number wanted"),
        ];
        for (text, message) in cases {
            assert_eq!(codec().parse(text).unwrap_err().message(), message);
        }
        let nan = Rt2Action { terminate: false, degrees: [0.0, 0.0, 0.0, f64::NAN, 0.0, 0.0, 0.0] };
        assert_eq!(codec().encode(&nan).unwrap_err().message(), "Δroll is not a number");
        assert!(Rt2Codec::new([0.0; 7], [0.0; 7]).is_err());
    }
}
