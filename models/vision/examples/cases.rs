use fauna_shared::zoo::{Options, Zoo};
fn main() {
    let zoo = Zoo::new(fauna_vision::FAMILIES.iter().copied());
    let mut bad = 0;
    for folder in std::env::args().skip(1) {
        for case in fauna_shared::parity::find(folder.as_ref()).unwrap() {
            match fauna_shared::parity::run(&case, &zoo, &Options::default()) {
                Ok(report) => {
                    println!("{report}");
                    if !report.passes() {
                        bad += 1;
                        println!("FAILED");
                    }
                }
                Err(error) => {
                    bad += 1;
                    println!("{}: ERROR {error}", case.display())
                }
            }
        }
    }
    println!("{bad} bad");
}
