//! Cross entropy of logits over a vocabulary, and its gradient.
//!
//! The forward pass keeps one number per row, the log-sum-exp of its logits, from which the backward pass recomputes
//! the softmax: no log-probabilities are stored. Rows are divided among threads, and the losses of the rows are added
//! in order, so that results do not depend on the number of threads.
//!
//! ```
//! use fauna_kernels::loss::CrossEntropy;
//! let (logits, labels) = ([0.0, 0.0, 5.0, 1.0], [1i64, -100]);
//! let mut log_sums = [0.0; 2];
//! let entropy = CrossEntropy::new(2);
//! let loss = entropy.forward(&logits, &labels, &mut log_sums).unwrap();
//! assert!((loss.mean() - 2f64.ln()).abs() < 1e-6);
//! let mut grad = logits;
//! let scale = 1.0 / loss.count as f32;
//! entropy.backward_in_place(&mut grad, &labels, &log_sums, scale).unwrap();
//! assert_eq!(grad, [0.5, -0.5, 0.0, 0.0]);
//! ```

use super::InvalidInput;
use super::elementwise::exp_one;
use super::versions::{Shared, fma, for_each_piece, reduce, versioned};

/// Elements per task.
const PIECE: usize = 16 * 1024;
/// Logits that are read twice while they are in the L1 cache.
const BLOCK: usize = 4 * 1024;

/// A label: the index of a class, or the index that is ignored.
pub trait Label: Copy + Sync {
    /// The label as a signed number.
    fn index(self) -> i64;
}

impl Label for i64 {
    fn index(self) -> i64 {
        self
    }
}

impl Label for u32 {
    fn index(self) -> i64 {
        i64::from(self)
    }
}

/// The sum of the losses of all rows, and the number that its mean is taken over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Sum of the losses, in nats.
    pub sum: f64,
    /// Number of labels that are not ignored; with class weights, the sum of the weights of these labels.
    pub count: f64,
}

impl Loss {
    /// `sum / count`, the reduction `mean` of PyTorch; NaN if every label is ignored.
    pub fn mean(&self) -> f64 {
        self.sum / self.count
    }
}

/// Cross entropy as `torch.nn.CrossEntropyLoss` computes it, with ε the label smoothing and K the number of classes:
/// `(1 - ε) w[y] (lse - x[y]) + ε / K Σ w[c] (lse - x[c])` for logits x with label y, where lse is their log-sum-exp.
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropy<'a> {
    classes: usize,
    ignored: i64,
    smoothing: f32,
    weight: Option<&'a [f32]>,
}

impl<'a> CrossEntropy<'a> {
    /// Cross entropy over `classes`: label -100 is ignored, no smoothing, no class weights.
    pub fn new(classes: usize) -> Self {
        Self { classes, ignored: -100, smoothing: 0.0, weight: None }
    }

    /// Sets the label whose rows have neither loss nor gradient.
    pub fn ignored(mut self, label: i64) -> Self {
        self.ignored = label;
        self
    }

    /// Sets the label smoothing ε, from 0 to 1.
    pub fn smoothing(mut self, smoothing: f32) -> Self {
        self.smoothing = smoothing;
        self
    }

    /// Sets the weight of each class, `(classes)`.
    pub fn weight(mut self, weight: &'a [f32]) -> Self {
        self.weight = Some(weight);
        self
    }

    /// The losses, added, and the log-sum-exp of each row.
    ///
    /// `logits`: `(rows, classes)`. `labels`: `(rows)`. `log_sums`: `(rows)`, overwritten; 0 where the label is ignored.
    ///
    /// # Errors
    /// [`InvalidInput`] if a label is neither a class nor ignored, the smoothing is not from 0 to 1, or the length of a
    /// slice does not match its shape.
    pub fn forward<L: Label>(
        &self,
        logits: &[f32],
        labels: &[L],
        log_sums: &mut [f32],
    ) -> Result<Loss, InvalidInput> {
        self.check(logits.len(), labels, log_sums.len())?;
        let classes = self.classes;
        let rows = rows_of_task(classes);
        let mut losses = vec![0f64; labels.len()];
        let all = Shared(log_sums.as_mut_ptr());
        for_each_piece(&mut losses, rows, |i, losses| {
            for (r, loss) in losses.iter_mut().enumerate() {
                let at = i * rows + r;
                // SAFETY: `log_sums` has an element per label, and each is written by the task that has the row.
                let log_sum = unsafe { &mut *all.get().add(at) };
                *log_sum = 0.0;
                if let Some(label) = self.class(labels[at]) {
                    (*loss, *log_sum) = self.loss_of(&logits[at * classes..][..classes], label);
                }
            }
        });
        let weights = labels.iter().filter_map(|label| self.class(*label)).map(|class| self.weight_of(class));
        Ok(Loss { sum: losses.iter().sum(), count: weights.map(f64::from).sum() })
    }

    /// Gradient of the sum of the losses with respect to the logits, times `scale`: `out` is
    /// `scale (softmax - onehot)` in rows without smoothing and weights, and zero where the label is ignored.
    ///
    /// `logits` and `out`: `(rows, classes)`. `labels` and `log_sums`: `(rows)`, as of [`CrossEntropy::forward`]. For
    /// the mean of the losses `scale` is `1 / count`.
    ///
    /// # Errors
    /// As [`CrossEntropy::forward`].
    pub fn backward<L: Label>(
        &self,
        logits: &[f32],
        labels: &[L],
        log_sums: &[f32],
        scale: f32,
        out: &mut [f32],
    ) -> Result<(), InvalidInput> {
        self.check(logits.len(), labels, log_sums.len())?;
        if out.len() != logits.len() {
            return Err(InvalidInput::new(format!(
                "expected a gradient of as many elements as logits, {}, found {}",
                logits.len(),
                out.len()
            )));
        }
        self.each_row(out, labels, |at, class, out| {
            let x = &logits[at * self.classes..][..self.classes];
            let (factor, shift, own) = self.slopes(class, scale);
            match self.weight {
                Some(weight) if shift != 0.0 => weighted(x, log_sums[at], factor, shift, weight, out),
                _ => probabilities(x, log_sums[at], factor, shift, out),
            }
            out[class] -= own;
        });
        Ok(())
    }

    /// [`CrossEntropy::backward`] that overwrites the logits with their gradient.
    ///
    /// # Errors
    /// As [`CrossEntropy::forward`].
    pub fn backward_in_place<L: Label>(
        &self,
        logits: &mut [f32],
        labels: &[L],
        log_sums: &[f32],
        scale: f32,
    ) -> Result<(), InvalidInput> {
        self.check(logits.len(), labels, log_sums.len())?;
        self.each_row(logits, labels, |at, class, row| {
            let (factor, shift, own) = self.slopes(class, scale);
            match self.weight {
                Some(weight) if shift != 0.0 => {
                    weighted_in_place(row, log_sums[at], factor, shift, weight);
                }
                _ => probabilities_in_place(row, log_sums[at], factor, shift),
            }
            row[class] -= own;
        });
        Ok(())
    }

    /// Calls `f(row, class, elements)` for the rows whose label is a class, and sets the others to zero.
    fn each_row<L: Label>(&self, x: &mut [f32], labels: &[L], f: impl Fn(usize, usize, &mut [f32]) + Sync) {
        let rows = rows_of_task(self.classes);
        for_each_piece(x, rows * self.classes, |i, x| {
            for (r, row) in x.chunks_exact_mut(self.classes).enumerate() {
                match self.class(labels[i * rows + r]) {
                    Some(class) => f(i * rows + r, class, row),
                    None => row.fill(0.0),
                }
            }
        });
    }

    /// The loss and the log-sum-exp of the logits `x` with label `class`.
    fn loss_of(&self, x: &[f32], class: usize) -> (f64, f32) {
        let log_sum = log_sum_exp(x);
        let own = f64::from(self.weight_of(class)) * (log_sum - f64::from(x[class]));
        let epsilon = f64::from(self.smoothing);
        if epsilon == 0.0 {
            return (own, log_sum as f32);
        }
        let all = match self.weight {
            Some(weight) => {
                let terms = weight.iter().zip(x).map(|(&w, &x)| f64::from(w) * (log_sum - f64::from(x)));
                terms.sum::<f64>()
            }
            None => self.classes as f64 * log_sum - sum(x),
        };
        ((1.0 - epsilon) * own + epsilon / self.classes as f64 * all, log_sum as f32)
    }

    /// Of the gradient of a row, the factor of its softmax, what is subtracted from each element (times the weight of
    /// its class), and what is subtracted from that of the label.
    fn slopes(&self, class: usize, scale: f32) -> (f32, f32, f32) {
        let own = (1.0 - self.smoothing) * self.weight_of(class) * scale;
        if self.smoothing == 0.0 {
            return (own, 0.0, own);
        }
        let shift = self.smoothing / self.classes as f32 * scale;
        let total = self.weight.map_or(self.classes as f64, |w| w.iter().map(|w| f64::from(*w)).sum());
        (own + shift * total as f32, shift, own)
    }

    /// The class of a label; none if it is ignored.
    fn class(&self, label: impl Label) -> Option<usize> {
        let index = label.index();
        (index != self.ignored).then_some(index as usize)
    }

    fn weight_of(&self, class: usize) -> f32 {
        self.weight.map_or(1.0, |weight| weight[class])
    }

    fn check<L: Label>(&self, logits: usize, labels: &[L], log_sums: usize) -> Result<(), InvalidInput> {
        let (rows, classes) = (labels.len(), self.classes);
        let complain = |what: String| Err(InvalidInput::new(what));
        if rows.checked_mul(classes) != Some(logits) || classes == 0 && rows > 0 {
            return complain(format!(
                "expected logits of {rows} rows by {classes} classes, found {logits} elements"
            ));
        }
        if log_sums != rows {
            return complain(format!("expected {rows} log-sum-exps, one per label, found {log_sums}"));
        }
        if !(0.0..=1.0).contains(&self.smoothing) {
            return complain(format!("expected a label smoothing from 0 to 1, found {}", self.smoothing));
        }
        if let Some(weight) = self.weight.filter(|weight| weight.len() != classes) {
            return complain(format!("expected {classes} class weights, found {}", weight.len()));
        }
        let valid = |label: i64| label == self.ignored || (label >= 0 && (label as u64) < classes as u64);
        match labels.iter().position(|label| !valid(label.index())) {
            Some(row) => complain(format!(
                "label {} of row {row} is neither a class, 0 to {}, nor the ignored {}",
                labels[row].index(),
                classes - 1,
                self.ignored
            )),
            None => Ok(()),
        }
    }
}

fn rows_of_task(classes: usize) -> usize {
    (PIECE / classes.max(1)).max(1)
}

versioned! {
    /// ln Σ eˣ, with the maximum of the blocks so far subtracted from the exponents.
    fn log_sum_exp(x: &[f32]) -> f64 {
        let (mut top, mut sum) = (f32::NEG_INFINITY, 0f64);
        for block in x.chunks(BLOCK) {
            let max = reduce(block, top, |v| v, |a, b| if b > a { b } else { a });
            if max > top {
                sum *= f64::from(top - max).exp();
                top = max;
            }
            // While all are -inf their differences would be NaN.
            let from = if top == f32::NEG_INFINITY { 0.0 } else { top };
            sum += f64::from(reduce(block, 0.0, |v| exp_one::<FMA>(v - from), |a, b| a + b));
        }
        if sum == 0.0 { f64::from(top) } else { f64::from(top) + sum.ln() }
    }
}

versioned! {
    fn sum(x: &[f32]) -> f64 {
        x.chunks(BLOCK).map(|block| f64::from(reduce(block, 0.0, |v| v, |a, b| a + b))).sum()
    }
}

versioned! {
    fn probabilities(x: &[f32], log_sum: f32, factor: f32, shift: f32, out: &mut [f32]) {
        for (v, &x) in out.iter_mut().zip(x) {
            *v = fma::<FMA>(exp_one::<FMA>(x - log_sum), factor, -shift);
        }
    }
}

versioned! {
    fn probabilities_in_place(x: &mut [f32], log_sum: f32, factor: f32, shift: f32) {
        for v in x {
            *v = fma::<FMA>(exp_one::<FMA>(*v - log_sum), factor, -shift);
        }
    }
}

versioned! {
    fn weighted(x: &[f32], log_sum: f32, factor: f32, shift: f32, weight: &[f32], out: &mut [f32]) {
        for ((v, &x), &w) in out.iter_mut().zip(x).zip(weight) {
            *v = fma::<FMA>(exp_one::<FMA>(x - log_sum), factor, -(shift * w));
        }
    }
}

versioned! {
    fn weighted_in_place(x: &mut [f32], log_sum: f32, factor: f32, shift: f32, weight: &[f32]) {
        for (v, &w) in x.iter_mut().zip(weight) {
            *v = fma::<FMA>(exp_one::<FMA>(*v - log_sum), factor, -(shift * w));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::numbers;

    /// Loss, count and gradient by the formula in float64.
    fn plainly(entropy: &CrossEntropy, x: &[f32], labels: &[i64], scale: f64) -> (f64, f64, Vec<f64>) {
        let (k, epsilon) = (entropy.classes, f64::from(entropy.smoothing));
        let weight = |c: usize| f64::from(entropy.weight.map_or(1.0, |w| w[c]));
        let (mut sum, mut count, mut grad) = (0.0, 0.0, vec![0.0; x.len()]);
        for (r, &label) in labels.iter().enumerate().filter(|(_, label)| **label != entropy.ignored) {
            let row: Vec<f64> = x[r * k..(r + 1) * k].iter().map(|v| f64::from(*v)).collect();
            let top = row.iter().copied().fold(f64::MIN, f64::max);
            let log_sum = top + row.iter().map(|v| (v - top).exp()).sum::<f64>().ln();
            count += weight(label as usize);
            for c in 0..k {
                let target = weight(c)
                    * (epsilon / k as f64 + f64::from(u8::from(c == label as usize)) * (1.0 - epsilon));
                sum += target * (log_sum - row[c]);
                for (d, grad) in grad[r * k..(r + 1) * k].iter_mut().enumerate() {
                    let own = f64::from(u8::from(c == d));
                    *grad += scale * target * ((row[d] - log_sum).exp() - own);
                }
            }
        }
        (sum, count, grad)
    }

    #[test]
    fn loss_and_gradient_follow_the_formula_in_float64() {
        for (rows, classes) in [(1, 1), (3, 2), (7, 33), (65, 129), (2, 577)] {
            let x: Vec<f32> = numbers(rows * classes, 1).iter().map(|v| v * 9.0).collect();
            let weight: Vec<f32> = numbers(classes, 2).iter().map(|v| v.abs() + 0.1).collect();
            let labels: Vec<i64> =
                (0..rows).map(|r| if r % 5 == 2 { -100 } else { (r * 7 % classes) as i64 }).collect();
            let plain = CrossEntropy::new(classes);
            for entropy in
                [plain, plain.smoothing(0.1), plain.weight(&weight), plain.weight(&weight).smoothing(0.3)]
            {
                let scale = 0.37;
                let (sum, count, wanted) = plainly(&entropy, &x, &labels, f64::from(scale));
                let mut log_sums = vec![f32::NAN; rows];
                let loss = entropy.forward(&x, &labels, &mut log_sums).unwrap();
                assert!((loss.sum - sum).abs() <= 2e-6 * sum.abs().max(1.0), "{} against {sum}", loss.sum);
                assert!((loss.count - count).abs() <= 1e-9 * count, "{} against {count}", loss.count);
                let mut grad = vec![f32::NAN; x.len()];
                entropy.backward(&x, &labels, &log_sums, scale, &mut grad).unwrap();
                for (i, (&got, &wanted)) in grad.iter().zip(&wanted).enumerate() {
                    assert!((f64::from(got) - wanted).abs() <= 2e-6, "element {i}: {got}, truth {wanted}");
                }
                let mut inside = x.clone();
                entropy.backward_in_place(&mut inside, &labels, &log_sums, scale).unwrap();
                assert_eq!(inside, grad);
            }
        }
    }

    #[test]
    fn a_vocabulary_of_several_blocks_with_masked_ones_keeps_its_precision() {
        let classes = 3 * BLOCK + 5;
        let mut x = numbers(2 * classes, 3);
        x[..BLOCK].fill(f32::NEG_INFINITY);
        x[BLOCK + 3] = 60.0;
        x[2 * BLOCK + 9] = 80.0;
        x[2 * classes - 1] = -1e30;
        let labels = [(2 * BLOCK + 8) as u32, 1];
        let entropy = CrossEntropy::new(classes);
        let mut log_sums = [0.0; 2];
        let loss = entropy.forward(&x, &labels, &mut log_sums).unwrap();
        let (sum, count, grad) = {
            let labels = labels.map(i64::from);
            let finite: Vec<f32> = x.iter().map(|v| v.max(-1e30)).collect();
            let row = |r: usize| {
                let row = &finite[r * classes..][..classes];
                let top = row.iter().fold(f64::MIN, |a, b| a.max(f64::from(*b)));
                top + row.iter().map(|v| (f64::from(*v) - top).exp()).sum::<f64>().ln()
            };
            let logs = [row(0), row(1)];
            let loss = |r: usize| logs[r] - f64::from(finite[r * classes + labels[r] as usize]);
            let grad: Vec<f64> =
                (0..2 * classes).map(|i| (f64::from(finite[i]) - logs[i / classes]).exp()).collect();
            (loss(0) + loss(1), 2.0, grad)
        };
        assert_eq!(loss.count, count);
        assert!((loss.sum - sum).abs() <= 1e-5 * sum, "{} against {sum}", loss.sum);
        entropy.backward_in_place(&mut x, &labels, &log_sums, 1.0).unwrap();
        for (i, (&got, &wanted)) in x.iter().zip(&grad).enumerate() {
            let own = f64::from(u8::from(i == labels[0] as usize || i == classes + 1));
            assert!(
                (f64::from(got) - (wanted - own)).abs() <= 2e-5 * wanted + 6e-8 * own + 1e-9,
                "element {i}: {got}"
            );
        }
    }

    /// `torch.nn.functional.cross_entropy` of PyTorch 2.9.1.
    #[test]
    fn values_of_pytorch() {
        let x = [0.5, -1.25, 2.0, 0.0, 3.0, 0.25, -0.75, 1.5, 1.0, 1.0, 1.0, 1.0];
        let (labels, weight) = ([2i64, -100, 0], [0.5, 1.0, 2.0, 1.5]);
        let plain = CrossEntropy::new(4);
        for (entropy, mean, first, last) in [
            (
                plain,
                0.860_396_5,
                [0.079_846_77, 0.013_875_289, -0.142_151_6, 0.048_429_515],
                [-0.375, 0.125, 0.125, 0.125],
            ),
            (
                plain.smoothing(0.1),
                0.944_771_5,
                [0.067_346_77, 0.001_375_287_9, -0.104_651_59, 0.035_929_51],
                [-0.3375, 0.1125, 0.1125, 0.1125],
            ),
            (
                plain.smoothing(0.1).weight(&weight),
                0.646_411_66,
                [0.117_964_014, 0.011_367_943, -0.188_913_46, 0.059_581_447],
                [-0.1275, 0.0475, 0.0375, 0.0425],
            ),
        ] {
            let mut log_sums = [0.0; 3];
            let loss = entropy.forward(&x, &labels, &mut log_sums).unwrap();
            assert!((loss.mean() - mean).abs() < 1e-6, "{} against {mean}", loss.mean());
            let mut grad = x;
            entropy.backward_in_place(&mut grad, &labels, &log_sums, (1.0 / loss.count) as f32).unwrap();
            for (got, wanted) in grad.iter().zip(first.iter().chain(&[0.0; 4]).chain(&last)) {
                assert!((got - wanted).abs() < 2e-7, "{got} against {wanted}");
            }
        }
    }

    #[test]
    fn rows_of_ignored_labels_alone_have_no_loss_and_no_gradient() {
        let entropy = CrossEntropy::new(3).ignored(7);
        let mut x = [1.0, f32::NAN, f32::INFINITY];
        let mut log_sums = [1.0];
        let loss = entropy.forward(&x, &[7i64], &mut log_sums).unwrap();
        assert_eq!((loss.sum, loss.count, log_sums), (0.0, 0.0, [0.0]));
        assert!(loss.mean().is_nan());
        entropy.backward_in_place(&mut x, &[7i64], &log_sums, 1.0).unwrap();
        assert_eq!(x, [0.0; 3]);
    }

    #[test]
    fn infinite_and_undefined_logits_propagate_like_the_formula() {
        let loss = |x: &[f32]| CrossEntropy::new(2).forward(x, &[0i64], &mut [0.0]).unwrap().sum;
        assert!(loss(&[f32::NAN, 1.0]).is_nan());
        assert!(loss(&[f32::NEG_INFINITY; 2]).is_nan());
        assert_eq!(loss(&[f32::NEG_INFINITY, 0.0]), f64::INFINITY);
        assert_eq!(loss(&[0.0, f32::NEG_INFINITY]), 0.0);
    }

    #[test]
    fn labels_and_sizes_that_do_not_fit_are_refused_by_name() {
        let entropy = CrossEntropy::new(3);
        let refusal = |entropy: CrossEntropy, x: &[f32], labels: &[i64], logs: &mut [f32]| {
            entropy.forward(x, labels, logs).unwrap_err().to_string()
        };
        let said = refusal(entropy, &[0.0; 6], &[0, 3], &mut [0.0; 2]);
        assert_eq!(said, "label 3 of row 1 is neither a class, 0 to 2, nor the ignored -100");
        assert!(refusal(entropy, &[0.0; 6], &[-1, 0], &mut [0.0; 2]).contains("label -1 of row 0"));
        assert!(refusal(entropy, &[0.0; 5], &[0, 0], &mut [0.0; 2]).contains("found 5 elements"));
        assert!(refusal(entropy, &[0.0; 3], &[0], &mut [0.0; 2]).contains("found 2"));
        assert!(refusal(entropy.smoothing(1.5), &[0.0; 3], &[0], &mut [0.0]).contains("found 1.5"));
        assert!(refusal(entropy.weight(&[1.0]), &[0.0; 3], &[0], &mut [0.0]).contains("found 1"));
        assert!(refusal(CrossEntropy::new(0), &[], &[-100], &mut [0.0]).contains("0 classes"));
        assert!(entropy.backward(&[0.0; 3], &[0u32], &[0.0], 1.0, &mut [0.0; 2]).is_err());
    }
}
