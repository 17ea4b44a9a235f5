//! The delay pattern of the codebooks (Copet et al. 2023, section 2.2).
//!
//! Codebook `k` is delayed by `k` columns (sequence steps), so that the codes of a column can be sampled independently;
//! the two channels of a stereo model have the same delays. Column 0 and all cells without a frame have the start
//! token. Four codebooks, five frames (`s` is the start token, numbers are frames):
//!
//! ```text
//! codebook 0   s 0 1 2 3 4 s s s
//! codebook 1   s s 0 1 2 3 4 s s
//! codebook 2   s s s 0 1 2 3 4 s
//! codebook 3   s s s s 0 1 2 3 4
//! ```

/// The frame of each cell of `(codebooks, columns)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelayPattern {
    delays: Vec<usize>,
    frames: usize,
}

impl DelayPattern {
    /// The pattern of `frames` complete frames. `channels` consecutive codebooks have the same delay.
    pub fn of_frames(codebooks: usize, channels: usize, frames: usize) -> Self {
        Self { delays: (0..codebooks).map(|codebook| codebook / channels.max(1)).collect(), frames }
    }

    /// The pattern of `columns`, the start column included, as in transformers: without delays if there are too few
    /// columns for the delays at both ends.
    pub fn of_columns(codebooks: usize, channels: usize, columns: usize) -> Self {
        let depth = codebooks.div_ceil(channels.max(1));
        match columns.saturating_add(1) < 2 * depth {
            true => Self { delays: vec![0; codebooks], frames: columns.saturating_sub(1) },
            false => Self::of_frames(codebooks, channels, columns.saturating_sub(depth)),
        }
    }

    /// Number of complete frames.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Number of columns, the start column included.
    pub fn columns(&self) -> usize {
        self.frames.saturating_add(1 + self.max_delay())
    }

    /// The frame of a cell; `None` for the start token.
    pub fn frame(&self, codebook: usize, column: usize) -> Option<usize> {
        column.checked_sub(1 + self.delays[codebook]).filter(|frame| *frame < self.frames)
    }

    /// Number of complete frames of the first `columns` columns.
    pub fn complete_frames(&self, columns: usize) -> usize {
        columns.saturating_sub(1 + self.max_delay()).min(self.frames)
    }

    /// The column of frame `frame` in codebook `codebook`.
    pub fn column(&self, codebook: usize, frame: usize) -> usize {
        1 + self.delays[codebook] + frame
    }

    fn max_delay(&self) -> usize {
        self.delays.iter().copied().max().unwrap_or(0)
    }
}

/// One window of a long generation: frames `start..end`, the first `context` of which are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First frame.
    pub start: usize,
    /// Number of frames at the start that are context and not generated.
    pub context: usize,
    /// End of the frames, exclusive.
    pub end: usize,
}

/// Splits the generation of `total` frames, the first `given` of which are given, into windows of at most `window`
/// frames with a stride of `stride`: each window has the last `window - stride` frames as context.
///
/// The given frames are all context if they are fewer than a window, otherwise only their end. `0 < stride <= window`.
pub fn windows(given: usize, total: usize, window: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut start, mut done) = (if given < window { 0 } else { given - (window - stride) }, given);
    while done < total {
        let end = total.min(start + window);
        windows.push(Window { start, context: done - start, end });
        done = end;
        start += stride;
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pattern as in the documentation of the module.
    fn diagram(pattern: &DelayPattern) -> Vec<String> {
        let cell = |codebook, column| match pattern.frame(codebook, column) {
            Some(frame) => frame.to_string(),
            None => "s".to_string(),
        };
        let row = |codebook| (0..pattern.columns()).map(|column| cell(codebook, column)).collect();
        (0..pattern.delays.len()).map(row).collect()
    }

    #[test]
    fn each_codebook_is_delayed_by_one_more_column() {
        let pattern = DelayPattern::of_frames(4, 1, 5);
        assert_eq!(diagram(&pattern), ["s01234sss", "ss01234ss", "sss01234s", "ssss01234"]);
    }

    #[test]
    fn channels_have_the_same_delays() {
        let pattern = DelayPattern::of_columns(4, 2, 5);
        assert_eq!(diagram(&pattern), ["s012s", "s012s", "ss012", "ss012"]);
    }

    #[test]
    fn columns_give_the_same_frames_as_transformers() {
        // 1 + 17 new -> 14 frames; stereo 1 + 13 -> 10; 1 + 7 given + 12 new -> 16; 1500 -> 1496 and 1496.
        for (codebooks, channels, columns, frames) in
            [(4, 1, 18, 14), (8, 2, 14, 10), (4, 1, 20, 16), (4, 1, 1500, 1496), (8, 2, 1500, 1496)]
        {
            let pattern = DelayPattern::of_columns(codebooks, channels, columns);
            assert_eq!((pattern.frames(), pattern.columns()), (frames, columns));
        }
    }

    #[test]
    fn too_few_columns_have_no_delays() {
        assert_eq!(diagram(&DelayPattern::of_columns(4, 1, 6)), ["s01234"; 4]);
        assert_eq!(DelayPattern::of_columns(4, 1, 7).frames(), 3);
        assert_eq!(DelayPattern::of_frames(4, 1, 1).columns(), 5);
    }

    #[test]
    fn a_frame_is_complete_with_its_last_codebook() {
        let pattern = DelayPattern::of_frames(4, 1, 3);
        assert_eq!(
            (0..=8).map(|n| pattern.complete_frames(n)).collect::<Vec<_>>(),
            [0, 0, 0, 0, 0, 1, 2, 3, 3]
        );
        for frame in 0..3 {
            assert_eq!(pattern.column(3, frame), pattern.column(0, frame) + 3);
            assert!((0..4).all(|k| pattern.frame(k, pattern.column(k, frame)) == Some(frame)));
        }
    }

    #[test]
    fn windows_overlap_by_the_context() {
        let of = |given, total| -> Vec<(usize, usize, usize)> {
            windows(given, total, 30, 18).into_iter().map(|w| (w.start, w.context, w.end)).collect()
        };
        assert_eq!(of(0, 10), [(0, 0, 10)]);
        assert_eq!(of(0, 30), [(0, 0, 30)]);
        assert_eq!(of(0, 31), [(0, 0, 30), (18, 12, 31)]);
        assert_eq!(of(0, 70), [(0, 0, 30), (18, 12, 48), (36, 12, 66), (54, 12, 70)]);
        // All given frames are context if they fit, otherwise their end.
        assert_eq!(of(20, 40), [(0, 20, 30), (18, 12, 40)]);
        assert_eq!(of(29, 40), [(0, 29, 30), (18, 12, 40)]);
        assert_eq!(of(40, 50), [(28, 12, 50)]);
        assert_eq!(of(5, 5), []);
    }
}
