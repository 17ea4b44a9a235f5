//! Distances of sounds and pictures.

use fauna_shared::item::Image;
use fauna_shared::{Error, Result};

/// Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508, equation 5; torchmetrics,
/// `scale_invariant_signal_distortion_ratio` without `zero_mean`): the higher, the nearer.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal lengths, none, or a silent reference.
pub fn si_sdr(estimate: &[f64], reference: &[f64]) -> Result<f64> {
    crate::classification::check(estimate.len(), reference.len())?;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let power = dot(reference, reference);
    if power == 0.0 {
        return Err(Error::input("the reference is silent: no ratio to it is defined"));
    }
    let scale = dot(estimate, reference) / power;
    let noise: f64 = estimate.iter().zip(reference).map(|(a, b)| (scale * b - a).powi(2)).sum();
    Ok(10.0 * (scale * scale * power / noise).log10())
}

/// Peak signal-to-noise ratio in dB (scikit-image, `peak_signal_noise_ratio` with a range of 255); infinite for equal pictures.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for pictures of different sizes.
pub fn psnr(a: &Image, b: &Image) -> Result<f64> {
    check_sizes(a, b)?;
    let squares: f64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    Ok(10.0 * (255.0 * 255.0 / (squares / a.rgb.len() as f64)).log10())
}

/// Side of the window of [`ssim`], in pixels.
const WINDOW: usize = 7;

/// Structural similarity (Wang et al. 2004; scikit-image, `structural_similarity` with its defaults and `channel_axis`), the
/// mean over the windows of 7 by 7 pixels and the channels, at most 1.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for pictures of different sizes or smaller than a window.
pub fn ssim(a: &Image, b: &Image) -> Result<f64> {
    check_sizes(a, b)?;
    if a.width < WINDOW || a.height < WINDOW {
        return Err(Error::input(format!(
            "a picture of {} by {} is smaller than {WINDOW} by {WINDOW}",
            a.width, a.height
        )));
    }
    let channels: f64 = (0..3).map(|channel| ssim_of_channel(a, b, channel)).sum();
    Ok(channels / 3.0)
}

fn ssim_of_channel(a: &Image, b: &Image, channel: usize) -> f64 {
    let (c1, c2) = ((0.01f64 * 255.0).powi(2), (0.03f64 * 255.0).powi(2));
    let count = (WINDOW * WINDOW) as f64;
    // The covariances are those of samples.
    let scale = count / (count - 1.0);
    let mut sum = 0.0;
    let (rows, columns) = (a.height - WINDOW + 1, a.width - WINDOW + 1);
    for top in 0..rows {
        for left in 0..columns {
            let mut sums = [0.0; 5];
            for y in top..top + WINDOW {
                for x in left..left + WINDOW {
                    let at = 3 * (y * a.width + x) + channel;
                    let (p, q) = (f64::from(a.rgb[at]), f64::from(b.rgb[at]));
                    for (sum, value) in sums.iter_mut().zip([p, q, p * p, q * q, p * q]) {
                        *sum += value;
                    }
                }
            }
            let [p, q, pp, qq, pq] = sums.map(|sum| sum / count);
            let (vp, vq, vpq) = (scale * (pp - p * p), scale * (qq - q * q), scale * (pq - p * q));
            sum += (2.0 * p * q + c1) * (2.0 * vpq + c2) / ((p * p + q * q + c1) * (vp + vq + c2));
        }
    }
    sum / (rows * columns) as f64
}

fn check_sizes(a: &Image, b: &Image) -> Result<()> {
    let size = |image: &Image| format!("{} by {}", image.width, image.height);
    match (a.width, a.height, a.rgb.len()) == (b.width, b.height, b.rgb.len()) && !a.rgb.is_empty() {
        true => Ok(()),
        false => Err(Error::input(format!("pictures of {} and {} pixels", size(a), size(b)))),
    }
}
