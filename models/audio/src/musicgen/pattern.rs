//! The delay pattern: in which order the codes of a frame are emitted (Copet et al. 2023, section 2.2).
//!
//! Codebook `k` runs `k` columns behind codebook 0, so that a column's codes may be drawn independently of each other;
//! the two channels of a stereo model share their delays. Column 0 holds the start token, and so does every cell that
//! belongs to no frame. Four codebooks, five frames (`s` is the start token, numbers are frames):
//!
//! ```text
//! codebook 0   s 0 1 2 3 4 s s s
//! codebook 1   s s 0 1 2 3 4 s s
//! codebook 2   s s s 0 1 2 3 4 s
//! codebook 3   s s s s 0 1 2 3 4
//! ```

/// Which frame each cell of `(codebooks, columns)` belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    delays: Vec<usize>,
    frames: usize,
}

impl Pattern {
    /// For so many whole frames. `channels` codebooks in a row share a delay.
    pub fn of_frames(codebooks: usize, channels: usize, frames: usize) -> Self {
        Self { delays: (0..codebooks).map(|codebook| codebook / channels.max(1)).collect(), frames }
    }

    /// For so many columns, the start column among them, as transformers counts: with too few columns to hold a ramp
    /// at both ends nothing is delayed.
    pub fn of_columns(codebooks: usize, channels: usize, columns: usize) -> Self {
        let depth = codebooks.div_ceil(channels.max(1));
        match columns.saturating_add(1) < 2 * depth {
            true => Self { delays: vec![0; codebooks], frames: columns.saturating_sub(1) },
            false => Self::of_frames(codebooks, channels, columns.saturating_sub(depth)),
        }
    }

    /// Whole frames.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Columns, the start column among them.
    pub fn columns(&self) -> usize {
        self.frames.saturating_add(1 + self.longest())
    }

    /// The frame of a cell; none where the start token stands.
    pub fn frame(&self, codebook: usize, column: usize) -> Option<usize> {
        column.checked_sub(1 + self.delays[codebook]).filter(|frame| *frame < self.frames)
    }

    /// How many frames are whole once so many columns are there.
    pub fn whole(&self, columns: usize) -> usize {
        columns.saturating_sub(1 + self.longest()).min(self.frames)
    }

    /// The column in which codebook `codebook` holds frame `frame`.
    pub fn column(&self, codebook: usize, frame: usize) -> usize {
        1 + self.delays[codebook] + frame
    }

    fn longest(&self) -> usize {
        self.delays.iter().copied().max().unwrap_or(0)
    }
}

/// One pass of a long generation: frames `start..end`, the first `context` of which are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its first frame.
    pub start: usize,
    /// Frames at its start that are read and not made.
    pub context: usize,
    /// The frame after its last.
    pub end: usize,
}

/// How `total` frames, the first `given` of which are there already, are made by passes of at most `window` frames
/// that move on by `stride`: each pass reads the last `window - stride` frames before it.
///
/// What is given is read whole where it leaves room in the window, else its end is. `0 < stride <= window`.
pub fn windows(given: usize, total: usize, window: usize, stride: usize) -> Vec<Window> {
    let mut passes = Vec::new();
    let (mut start, mut done) = (if given < window { 0 } else { given - (window - stride) }, given);
    while done < total {
        let end = total.min(start + window);
        passes.push(Window { start, context: done - start, end });
        done = end;
        start += stride;
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pattern as the module draws it.
    fn drawn(pattern: &Pattern) -> Vec<String> {
        let cell = |codebook, column| match pattern.frame(codebook, column) {
            Some(frame) => frame.to_string(),
            None => "s".to_string(),
        };
        let row = |codebook| (0..pattern.columns()).map(|column| cell(codebook, column)).collect();
        (0..pattern.delays.len()).map(row).collect()
    }

    #[test]
    fn each_codebook_runs_one_column_behind_the_one_before() {
        let pattern = Pattern::of_frames(4, 1, 5);
        assert_eq!(drawn(&pattern), ["s01234sss", "ss01234ss", "sss01234s", "ssss01234"]);
    }

    #[test]
    fn channels_share_their_delays() {
        let pattern = Pattern::of_columns(4, 2, 5);
        assert_eq!(drawn(&pattern), ["s012s", "s012s", "ss012", "ss012"]);
    }

    #[test]
    fn columns_give_the_frames_that_transformers_gives() {
        // 1 + 17 new -> 14 frames; stereo 1 + 13 -> 10; 1 + 7 given + 12 new -> 16; 1500 -> 1496 and 1496.
        for (codebooks, channels, columns, frames) in
            [(4, 1, 18, 14), (8, 2, 14, 10), (4, 1, 20, 16), (4, 1, 1500, 1496), (8, 2, 1500, 1496)]
        {
            let pattern = Pattern::of_columns(codebooks, channels, columns);
            assert_eq!((pattern.frames(), pattern.columns()), (frames, columns));
        }
    }

    #[test]
    fn too_few_columns_are_not_delayed() {
        assert_eq!(drawn(&Pattern::of_columns(4, 1, 6)), ["s01234"; 4]);
        assert_eq!(Pattern::of_columns(4, 1, 7).frames(), 3);
        assert_eq!(Pattern::of_frames(4, 1, 1).columns(), 5);
    }

    #[test]
    fn a_frame_is_whole_with_its_last_codebook() {
        let pattern = Pattern::of_frames(4, 1, 3);
        assert_eq!((0..=8).map(|n| pattern.whole(n)).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 1, 2, 3, 3]);
        for frame in 0..3 {
            assert_eq!(pattern.column(3, frame), pattern.column(0, frame) + 3);
            assert!((0..4).all(|k| pattern.frame(k, pattern.column(k, frame)) == Some(frame)));
        }
    }

    #[test]
    fn windows_overlap_and_meet() {
        let of = |given, total| -> Vec<(usize, usize, usize)> {
            windows(given, total, 30, 18).into_iter().map(|w| (w.start, w.context, w.end)).collect()
        };
        assert_eq!(of(0, 10), [(0, 0, 10)]);
        assert_eq!(of(0, 30), [(0, 0, 30)]);
        assert_eq!(of(0, 31), [(0, 0, 30), (18, 12, 31)]);
        assert_eq!(of(0, 70), [(0, 0, 30), (18, 12, 48), (36, 12, 66), (54, 12, 70)]);
        // What is given and fits is read whole, what does not, by its end.
        assert_eq!(of(20, 40), [(0, 20, 30), (18, 12, 40)]);
        assert_eq!(of(29, 40), [(0, 29, 30), (18, 12, 40)]);
        assert_eq!(of(40, 50), [(28, 12, 50)]);
        assert_eq!(of(5, 5), []);
    }
}
