//! What the references compute, from `reference.safetensors`.

use fauna_shared::image::resize::{Arithmetic, Filter, resize};
use fauna_shared::image::tensor::bicubic;

use crate::{picture, tensors};

fn filter(name: &str) -> Filter {
    match name {
        "nearest" => Filter::Nearest,
        "box" => Filter::Box,
        "bilinear" => Filter::Bilinear,
        "hamming" => Filter::Hamming,
        "bicubic" => Filter::Bicubic,
        "lanczos" => Filter::Lanczos,
        other => panic!("{other}"),
    }
}

#[test]
fn every_byte_of_a_resized_picture_is_that_of_pillow_or_torchvision() {
    let tensors = tensors("reference.safetensors");
    let mut compared = 0;
    for (name, wanted) in &tensors {
        let parts: Vec<&str> = name.split('.').collect();
        let [reference, filter_name, source, height, width] = parts[..] else { continue };
        let arithmetic = match reference {
            "pillow" => Arithmetic::Pillow,
            "torchvision" => Arithmetic::Torchvision,
            _ => continue,
        };
        let source = picture(&tensors[&format!("picture.{source}")]);
        let (height, width) = (height.parse().unwrap(), width.parse().unwrap());
        let found = resize(&source, height, width, filter(filter_name), arithmetic).unwrap();
        let wanted = picture(wanted);
        assert_eq!((found.height, found.width), (wanted.height, wanted.width), "{name}");
        let apart = found.rgb.iter().zip(&wanted.rgb).filter(|(found, wanted)| found != wanted).count();
        assert_eq!(apart, 0, "{name}: {apart} of {} bytes differ", wanted.rgb.len());
        compared += 1;
    }
    // torch 2.9.1 itself stops at two of them.
    assert_eq!(compared, 15 * 9 - 2);
}

#[test]
fn grids_are_interpolated_as_by_torch() {
    let tensors = tensors("reference.safetensors");
    let mut compared = 0;
    for (name, wanted) in &tensors {
        let Some(sizes) = name.strip_prefix("bicubic.") else { continue };
        let sizes: Vec<usize> = sizes.split('.').map(|size| size.parse().unwrap()).collect();
        let grid = &tensors[&format!("grid.{}.{}", sizes[0], sizes[1])];
        let found = bicubic(grid, sizes[2], sizes[3]).unwrap();
        let apart = (found - wanted).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(apart < 4e-6, "{name}: {apart:e}");
        compared += 1;
    }
    assert_eq!(compared, 4);
}
