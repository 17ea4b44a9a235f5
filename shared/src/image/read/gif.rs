//! Decoding of the first frame of a GIF, like in Pillow.

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::{PixelLimit, Pixels, Raster, damaged, flat, unreadable};
use crate::Result;

pub(super) fn decode(bytes: &[u8], limit: PixelLimit) -> Result<Raster> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(most) = std::num::NonZeroU64::new(limit.bytes() as u64) {
        options.set_memory_limit(MemoryLimit::Bytes(most));
    }
    let mut decoder = options.read_info(bytes).map_err(failed)?;
    let (wide, high) = (decoder.width(), decoder.height());
    limit.check(wide.max(1).into(), high.max(1).into())?;
    let frame = decoder.next_frame_info().map_err(failed)?.ok_or_else(|| damaged("a gif without a frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (columns, rows) = (usize::from(frame.width), usize::from(frame.height));
    let clear = frame.transparent;
    // A frame that exceeds the logical screen enlarges it.
    let (width, height) = ((left + columns).max(wide.into()), (top + rows).max(high.into()));
    let (width, height) = limit.check(width as u32, height as u32)?;
    let palette = frame.palette.clone();
    let palette = palette.or_else(|| decoder.global_palette().map(<[u8]>::to_vec));
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(failed)?;
    let colour = |index: u8| match &palette {
        Some(palette) => palette.as_chunks::<3>().0.get(usize::from(index)).copied().unwrap_or_default(),
        None => [index; 3],
    };
    // Around a frame smaller than the screen, Pillow has the transparent index, else index 0.
    let mut screen = vec![clear.unwrap_or(0); width * height];
    if columns > 0 {
        for (row, line) in indices.chunks_exact(columns).take(rows).enumerate() {
            let start = (top + row) * width + left;
            screen[start..start + columns].copy_from_slice(line);
        }
    }
    let pixels = match clear {
        None => Pixels::Rgb(flat(screen.into_iter().map(colour))),
        Some(clear) => {
            let pixel = |index: u8| {
                let [r, g, b] = colour(index);
                [r, g, b, if index == clear { 0 } else { 255 }]
            };
            Pixels::Rgba(flat(screen.into_iter().map(pixel)))
        }
    };
    Ok(Raster { width, height, pixels, orientation: None, notes: Vec::new(), indexed: true })
}

fn failed(error: DecodingError) -> crate::Error {
    unreadable(false, error)
}
