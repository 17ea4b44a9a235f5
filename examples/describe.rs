//! Visual question answering with a text-only one-shot exemplar, as in Med-PaLM M.
//!
//!     cargo run --release --example describe -- google/medgemma-4b-it chest.png "Describe the findings."
//!
//! Without arguments it uses a tiny model with random weights:
//!
//!     cargo run --release --example describe
//!     note: a research model and not a medical device: its output is not for diagnosis or treatment
//!     skin maybe of bone in in no a maybe

use std::io::Write;
use std::ops::ControlFlow;

use fauna::image::read;
use fauna::vision::medgemma::OneShot;
use fauna::{Image, Item};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/medgemma/generate_whole_way/model");

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (source, picture, question) = match &arguments[..] {
        [source, picture, question] => (source.as_str(), read(picture)?, question.as_str()),
        _ => (TINY, spot(), "describe this picture ."),
    };
    let model = fauna::open(source)?;
    for note in &model.card().notes {
        println!("note: {note}");
    }
    let prompt = OneShot {
        instruction: "describe the skin .".into(),
        exemplar: "the picture <img> shows a normal skin .".into(),
        query: vec![Item::Image(picture), question.into()],
    };
    let options = model.defaults().with_max_new_tokens(if source == TINY { 9 } else { 200 });
    model.generate(&prompt.into(), &options, &mut |item| {
        if let Item::Text(words) = item {
            print!("{words}");
            let _ = std::io::stdout().flush();
        }
        ControlFlow::Continue(())
    })?;
    println!();
    Ok(())
}

/// Returns an image of a dark spot on light skin.
fn spot() -> Image {
    let pixel = |i: usize| {
        let (x, y) = ((i % 64) as f32 - 32.0, (i / 64) as f32 - 30.0);
        if x * x + y * y < 150.0 { [90, 40, 30] } else { [230, 190, 170] }
    };
    Image { width: 64, height: 64, rgb: (0..64 * 64).flat_map(pixel).collect() }
}
