//! Episodes of the table-top as training data of a policy.

use fauna_robotics::action::StatisticsTable;
use fauna_tabletop::{Episode, Expert, SceneConfig, dataset_statistics, run_episode};

#[test]
fn action_statistics_of_episodes_are_read_back_and_normalise_their_actions() {
    let config = SceneConfig { render: false, ..SceneConfig::default() };
    let episodes: Vec<Episode> = (0..5).map(|seed| run_episode(&Expert, seed, &config).unwrap()).collect();
    let stored = dataset_statistics("tabletop", &episodes).unwrap();
    let table = StatisticsTable::from_json(&stored).unwrap();
    let set = table.get(Some("tabletop")).unwrap().1;
    assert_eq!(set.mask(), [true, true, true, true, true, true, false]);
    for record in episodes.iter().flat_map(Episode::training_steps) {
        let back = set.unnormalize(&set.normalize(record.action).unwrap()).unwrap();
        for (i, back) in back.iter().enumerate() {
            let clipped = record.action[i].clamp(set.q01()[i], set.q99()[i]);
            let expected = if i < 6 { clipped } else { record.action[i] };
            assert!((back - expected).abs() < 1e-12);
        }
    }
}
