use super::*;
use crate::codec::{decode_root, encode_root};
use crate::root::Unreadable;
use crate::testing::*;
use object_store::path::Path;
use proptest::prelude::*;

fn refusal(root: &Root, change: Change) -> Refusal {
    apply(root, &[change], id(1)).unwrap_err()
}

fn then(root: &Root, change: Change) -> Root {
    apply(root, &[change], id(2)).unwrap()
}

/// A base image from 100 to 120, sliced up to 500 on TLI 1 by epoch 1.
fn running() -> Root {
    let confirmed = Slice { confirmed: vec![BaseId(id(1))], ..slice(1, 100, 500) };
    after(&[register(&base(1, 1, 100, 120)), Change::TakeEpoch(Role::Slicer), Change::Slice(confirmed)])
}

#[test]
fn the_first_base_image_begins_a_range_and_slicing_at_its_redo() {
    let root = after(&[register(&base(1, 3, 100, 120))]);
    assert_eq!(root.version, 1);
    assert_eq!(root.ranges, [ReadableRange { from: Lsn(120), to: None, base: Some(BaseId(id(1))) }]);
    assert_eq!(root.sliced, Some(position(3, 100)));
    assert_eq!(root.history, [TliSwitch { tli: 3, from: Lsn(100) }]);
}

#[test]
fn a_later_base_image_inside_the_running_range_begins_no_range() {
    let root = then(&running(), register(&base(2, 1, 300, 320)));
    assert_eq!(root.ranges.len(), 1);
    assert_eq!(root.bases.iter().map(|base| base.redo).collect::<Vec<_>>(), [Lsn(100), Lsn(300)]);
    let confirmed = then(&root, Change::ConfirmBases { epoch: 1, bases: vec![BaseId(id(2))] });
    assert!(confirmed.base(BaseId(id(2))).unwrap().confirmed);
    assert_eq!(confirmed.sliced, root.sliced);
}

#[test]
fn a_base_image_ahead_of_slicing_waits_and_is_met_by_it() {
    let root = then(&running(), register(&base(2, 1, 600, 620)));
    assert_eq!((root.ranges.len(), root.sliced.as_ref().unwrap().lsn), (1, Lsn(500)));
    let early = Slice { confirmed: vec![BaseId(id(2))], ..slice(1, 500, 619) };
    assert!(matches!(refusal(&root, Change::Slice(early)), Refusal::NotConfirmable { .. }));
    let met = Slice { confirmed: vec![BaseId(id(2))], ..slice(1, 500, 700) };
    let root = then(&root, Change::Slice(met));
    assert!(root.base(BaseId(id(2))).unwrap().confirmed);
}

#[test]
fn a_base_image_below_the_sliced_lsn_is_refused_off_the_sliced_history() {
    let refused = refusal(&running(), register(&base(2, 2, 300, 320)));
    assert!(matches!(refused, Refusal::OffHistory { .. }), "{refused}");
    assert!(refused.to_string().contains("--create"), "{refused}");
    let before = refusal(&running(), register(&base(2, 1, 50, 60)));
    assert!(matches!(before, Refusal::OffHistory { .. }), "{before}");
    let switched = Slice { switches: vec![TliSwitch { tli: 2, from: Lsn(550) }], ..slice(1, 500, 600) };
    let root = then(&running(), Change::Slice(switched));
    then(&root, register(&base(2, 2, 550, 560)));
    then(&root, register(&base(2, 1, 540, 550)));
    for (tli, redo) in [(1, 560), (2, 540), (1, 700)] {
        let refused = refusal(&root, register(&base(2, tli, redo, redo + 5)));
        assert!(matches!(refused, Refusal::OffHistory { .. }), "{refused}");
    }
}

#[test]
fn a_base_image_past_a_gap_closes_the_range_at_the_sliced_lsn_and_begins_one() {
    let root = then(&running(), register(&base(2, 1, 800, 820)));
    let root = then(&root, Change::BeginRange { epoch: 1, at: Lsn(500), base: BaseId(id(2)) });
    assert_eq!(root.ranges[0].to, Some(Lsn(500)));
    assert_eq!(root.ranges[1], ReadableRange { from: Lsn(820), to: None, base: Some(BaseId(id(2))) });
    assert_eq!(root.sliced, Some(position(1, 800)));
    let lost = refusal(&root, register(&base(3, 1, 600, 620)));
    assert!(matches!(lost, Refusal::OffHistory { .. }), "{lost}");
    let half_lost = refusal(&root, register(&base(3, 1, 490, 510)));
    assert!(matches!(half_lost, Refusal::OffHistory { .. }), "{half_lost}");
    then(&root, register(&base(3, 1, 400, 420)));
}

#[test]
fn a_gap_inside_the_window_of_a_base_image_leaves_no_empty_range() {
    let root = after(&[
        register(&base(1, 1, 100, 200)),
        Change::TakeEpoch(Role::Slicer),
        Change::Slice(slice(1, 100, 150)),
        register(&base(2, 1, 300, 320)),
        Change::BeginRange { epoch: 1, at: Lsn(150), base: BaseId(id(2)) },
    ]);
    assert_eq!(root.ranges, [ReadableRange { from: Lsn(320), to: None, base: Some(BaseId(id(2))) }]);
}

#[test]
fn a_range_begins_only_past_the_sliced_wal_and_where_the_slicer_believes_to_stand() {
    let root = then(&running(), register(&base(2, 1, 300, 320)));
    let inside = Change::BeginRange { epoch: 1, at: Lsn(500), base: BaseId(id(2)) };
    assert!(matches!(refusal(&root, inside), Refusal::NoRange { .. }));
    let root = then(&running(), register(&base(2, 1, 800, 820)));
    let elsewhere = Change::BeginRange { epoch: 1, at: Lsn(490), base: BaseId(id(2)) };
    assert!(matches!(refusal(&root, elsewhere), Refusal::NotContiguous { .. }));
    let unknown = Change::BeginRange { epoch: 1, at: Lsn(500), base: BaseId(id(9)) };
    assert!(matches!(refusal(&root, unknown), Refusal::NoRange { .. }));
}

#[test]
fn a_slice_continues_exactly_where_the_last_one_ended() {
    for from in [499, 501] {
        let refused = refusal(&running(), Change::Slice(slice(1, from, 600)));
        assert_eq!(refused, Refusal::NotContiguous { sliced: Lsn(500), from: Lsn(from) });
    }
    assert!(matches!(refusal(&running(), Change::Slice(slice(1, 500, 499))), Refusal::NotContiguous { .. }));
    let root = then(&running(), Change::Slice(slice(1, 500, 600)));
    let sliced = root.sliced.unwrap();
    assert_eq!((sliced.lsn, sliced.prev), (Lsn(600), Lsn(599)));
    assert_eq!(sliced.state, serde_json::json!({ "sliced": 600 }));
}

#[test]
fn only_the_holder_of_the_newest_epoch_slices() {
    let taken = then(&running(), Change::TakeEpoch(Role::Slicer));
    for held in [0, 1, 3] {
        let fenced = refusal(&taken, Change::Slice(slice(held, 500, 600)));
        assert_eq!(fenced, Refusal::Fenced { role: Role::Slicer, held, current: 2 });
    }
    then(&taken, Change::Slice(slice(2, 500, 600)));
    let fenced = refusal(&after(&[register(&base(1, 1, 100, 120))]), Change::Slice(slice(0, 100, 200)));
    assert!(matches!(fenced, Refusal::Fenced { .. }), "an epoch that nobody took");
}

#[test]
fn a_base_image_is_registered_without_an_epoch_and_carries_all_of_them_through() {
    let taken = then(&then(&running(), Change::TakeEpoch(Role::Compactor)), Change::TakeEpoch(Role::Gc));
    let root = then(&taken, register(&base(2, 1, 300, 320)));
    assert_eq!(root.epochs, taken.epochs);
    assert_eq!((root.epochs.slicer, root.epochs.compactor, root.epochs.gc), (1, 1, 1));
}

#[test]
fn a_malformed_base_image_is_refused() {
    let confirmed = BaseImage { confirmed: true, ..base(1, 1, 100, 120) };
    for wrong in [base(1, 1, 100, 100), base(1, 0, 100, 120), base(1, 1, 0, 120), confirmed] {
        let root = Root::empty(timeline(), None);
        assert!(matches!(refusal(&root, register(&wrong)), Refusal::MalformedBase { .. }));
    }
    assert_eq!(refusal(&running(), register(&base(1, 1, 300, 320))), Refusal::BaseRegistered(BaseId(id(1))));
}

#[test]
fn layers_that_do_not_fit_their_base_image_are_refused() {
    let image = base(1, 1, 100, 120);
    let root = Root::empty(timeline(), None);
    let with = |layers: Vec<LayerEntry>| Change::RegisterBase { base: image.clone(), layers };
    let good = image_layer(10, &image, 1);
    let wrong = [
        LayerEntry { base: None, ..good.clone() },
        LayerEntry { lsn_to: Lsn(101), ..good.clone() },
        LayerEntry { serves_from: Lsn(100), ..good.clone() },
        LayerEntry { kind: LayerKind::Delta, ..good.clone() },
        LayerEntry { key_min: key(9), ..good.clone() },
    ];
    for layer in wrong {
        assert!(matches!(refusal(&root, with(vec![layer])), Refusal::MalformedLayer { .. }));
    }
    let overlapping = vec![image_layer(10, &image, 2), image_layer(11, &image, 2)];
    assert!(matches!(refusal(&root, with(overlapping)), Refusal::MalformedLayer { .. }));
    let root = then(&root, with(vec![image_layer(10, &image, 1), image_layer(11, &image, 2)]));
    assert_eq!(root.recent.len(), 2);
}

#[test]
fn layers_that_do_not_fit_their_slice_are_refused() {
    let with = |layers: Vec<LayerEntry>| Change::Slice(Slice { layers, ..slice(1, 500, 600) });
    let good = delta_layer(10, 1, 500, 600);
    let wrong = [
        LayerEntry { lsn_from: Lsn(499), serves_from: Lsn(499), ..good.clone() },
        LayerEntry { lsn_to: Lsn(601), ..good.clone() },
        LayerEntry { lsn_to: Lsn(500), ..good.clone() },
        LayerEntry { tli: 2, ..good.clone() },
        LayerEntry { kind: LayerKind::Image, ..good.clone() },
        LayerEntry { base: Some(BaseId(id(1))), ..good.clone() },
    ];
    for layer in wrong {
        assert!(matches!(refusal(&running(), with(vec![layer])), Refusal::MalformedLayer { .. }));
    }
    assert!(matches!(
        refusal(&running(), with(vec![good.clone(), good.clone()])),
        Refusal::MalformedLayer { .. }
    ));
    let root = then(&running(), with(vec![good.clone()]));
    let again = Change::Slice(Slice { layers: vec![delta_layer(10, 1, 600, 700)], ..slice(1, 600, 700) });
    assert!(matches!(refusal(&root, again), Refusal::MalformedLayer { .. }));
}

#[test]
fn slicing_follows_switches_upwards_and_inside_the_slice_only() {
    let with = |switches: &[(Tli, u64)]| {
        let switches = switches.iter().map(|&(tli, from)| TliSwitch { tli, from: Lsn(from) }).collect();
        Change::Slice(Slice { switches, ..slice(1, 500, 600) })
    };
    for wrong in [&[(1, 550)][..], &[(2, 499)], &[(2, 601)], &[(3, 550), (2, 560)], &[(2, 560), (3, 550)]] {
        assert!(matches!(refusal(&running(), with(wrong)), Refusal::WrongSwitch { .. }), "{wrong:?}");
    }
    let root = then(&running(), with(&[(2, 500), (4, 600)]));
    assert_eq!(root.sliced.as_ref().unwrap().tli, 4);
    assert_eq!([499, 500, 599, 600].map(|lsn| root.tli_starting_at(Lsn(lsn)).unwrap()), [1, 2, 2, 4]);
    assert_eq!([500, 501, 600, 601].map(|lsn| root.tli_ending_at(Lsn(lsn)).unwrap()), [1, 2, 2, 4]);
    assert_eq!(root.tli_starting_at(Lsn(99)), None);
}

#[test]
fn a_branch_begins_at_its_branch_point_once() {
    let empty = Root::empty(timeline(), Some(ancestor(400, 1)));
    let create = |tli, lsn| Change::CreateTimeline { start: position(tli, lsn) };
    assert!(matches!(refusal(&empty, register(&base(1, 2, 500, 520))), Refusal::WrongBeginning(_)));
    assert!(matches!(refusal(&empty, Change::TakeEpoch(Role::Slicer)), Refusal::WrongBeginning(_)));
    for (tli, lsn) in [(2, 399), (2, 401)] {
        assert!(matches!(refusal(&empty, create(tli, lsn)), Refusal::WrongBeginning(_)));
    }
    let root = then(&empty, create(2, 400));
    assert_eq!(root.ranges, [ReadableRange { from: Lsn(400), to: None, base: None }]);
    assert!(root.readable(Lsn(400)).is_ok());
    assert_eq!(refusal(&root, create(2, 400)), Refusal::AlreadyCreated(1));
    assert!(matches!(refusal(&root, register(&base(1, 2, 300, 320))), Refusal::OffHistory { .. }));
    let alone = Root::empty(timeline(), None);
    assert!(matches!(refusal(&alone, create(2, 400)), Refusal::WrongBeginning(_)));
}

#[test]
fn changes_are_applied_together_or_not_at_all() {
    let root = running();
    let good = Change::Slice(slice(1, 500, 600));
    assert!(apply(&root, &[good.clone(), good.clone()], id(1)).is_err());
    let both = apply(&root, &[good, Change::Slice(slice(1, 600, 700))], id(1)).unwrap();
    assert_eq!((both.version, both.sliced.unwrap().lsn), (root.version + 1, Lsn(700)));
}

#[test]
fn an_lsn_that_cannot_be_read_says_what_can() {
    let empty = Root::empty(timeline(), None);
    assert_eq!(empty.readable(Lsn(1)), Err(Unreadable::Empty));
    let root = then(&running(), register(&base(2, 1, 800, 820)));
    let root = then(&root, Change::BeginRange { epoch: 1, at: Lsn(500), base: BaseId(id(2)) });
    let root = then(&root, Change::Slice(slice(1, 800, 900)));
    let at = |lsn| root.readable(Lsn(lsn)).cloned();
    assert_eq!(at(119), Err(Unreadable::BeforeFirst { lsn: Lsn(119), from: Lsn(120) }));
    assert_eq!(at(120), Ok(root.ranges[0].clone()));
    assert_eq!(at(500), Ok(root.ranges[0].clone()));
    assert_eq!(at(501), Err(Unreadable::Gap { lsn: Lsn(501), to: Lsn(500), from: Lsn(820) }));
    assert_eq!(at(819), Err(Unreadable::Gap { lsn: Lsn(819), to: Lsn(500), from: Lsn(820) }));
    assert!(matches!(at(820), Err(Unreadable::NotConfirmed { .. })));
    assert_eq!(at(901), Err(Unreadable::NotSliced { lsn: Lsn(901), sliced: Lsn(900) }));
    let root = then(&root, Change::ConfirmBases { epoch: 1, bases: vec![BaseId(id(2))] });
    assert_eq!(root.readable(Lsn(820)), Ok(&root.ranges[1]));
}

/// A step of a random history: numbers that are read relative to the root they meet, so that many fit.
#[derive(Clone, Debug)]
struct Step {
    what: u8,
    a: i64,
    b: u64,
    tli: Tli,
    stale: bool,
}

fn change_of(step: &Step, root: &Root, n: u64) -> Change {
    let sliced = root.sliced.as_ref().map_or(1000, |sliced| sliced.lsn.0);
    let near = |offset: i64| sliced.saturating_add_signed(offset).max(1);
    let epoch = root.epochs.slicer.saturating_sub(u64::from(step.stale));
    match step.what % 8 {
        0 => Change::TakeEpoch([Role::Slicer, Role::Compactor, Role::Gc][(step.b % 3) as usize]),
        1 | 2 => {
            let image = base(n, step.tli, near(step.a), near(step.a) + step.b);
            let layers = (0..step.b % 3).map(|l| image_layer(n * 10 + l, &image, l as u8)).collect();
            Change::RegisterBase { base: image, layers }
        }
        3 => {
            let bases = root.bases.iter().filter(|_| step.b.is_multiple_of(2)).map(|base| base.id).collect();
            Change::ConfirmBases { epoch, bases }
        }
        4 => {
            let ahead = root.bases.iter().rev().find(|base| base.redo.0 > sliced);
            let base = ahead.or(root.bases.get(step.b as usize)).map(|base| base.id);
            Change::BeginRange {
                epoch,
                at: Lsn(near(i64::from(step.a % 5 == 0))),
                base: base.unwrap_or(BaseId(id(n))),
            }
        }
        _ => {
            let (from, to) = (sliced, sliced + step.b);
            let tli = root.history.last().map_or(1, |last| last.tli);
            let switches =
                if step.a % 4 == 0 { vec![TliSwitch { tli: step.tli, from: Lsn(to) }] } else { vec![] };
            Change::Slice(Slice {
                layers: vec![delta_layer(n * 10, tli, from, to)],
                switches,
                ..slice(epoch, from, to)
            })
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (any::<u8>(), -60i64..60, 0u64..40, 1u32..4, prop::bool::weighted(0.1));
    prop::collection::vec(step.prop_map(|(what, a, b, tli, stale)| Step { what, a, b, tli, stale }), 0..60)
}

fn layer_ids(root: &Root) -> Vec<Uuid> {
    root.recent.iter().map(|layer| layer.id).collect()
}

/// What one accepted change may never do.
fn nothing_is_lost(before: &Root, change: &Change, next: &Root) {
    assert_eq!(next.version, before.version + 1);
    check(next).unwrap();
    for role in [Role::Slicer, Role::Compactor, Role::Gc] {
        let raised = u64::from(*change == Change::TakeEpoch(role));
        assert_eq!(next.epochs.of(role), before.epochs.of(role) + raised);
    }
    assert!(layer_ids(next).starts_with(&layer_ids(before)));
    assert!(next.history.starts_with(&before.history));
    let closed: Vec<_> = before.ranges.iter().filter(|range| range.to.is_some()).collect();
    assert!(closed.iter().all(|range| next.ranges.contains(range)), "a closed range changed");
    for base in &before.bases {
        let kept = next.base(base.id).unwrap();
        assert!(kept.confirmed >= base.confirmed);
    }
    if let (Some(was), Some(is)) = (&before.sliced, &next.sliced) {
        assert!(was.lsn <= is.lsn && was.tli <= is.tli);
    }
    for range in &before.ranges {
        let end = before.run_end(range);
        assert_eq!(before.readable(end).is_ok(), next.readable(end).is_ok() && before.readable(end).is_ok());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn no_sequence_of_changes_breaks_what_holds_of_every_root(steps in steps()) {
        let mut root = Root::empty(timeline(), None);
        for (n, step) in steps.iter().enumerate() {
            let change = change_of(step, &root, n as u64 + 1);
            let Ok(next) = apply(&root, std::slice::from_ref(&change), id(n as u64)) else { continue };
            nothing_is_lost(&root, &change, &next);
            prop_assert_eq!(&apply(&root, std::slice::from_ref(&change), id(n as u64)).unwrap(), &next);
            root = next;
        }
        if root.version > 0 && root.recent.len() <= crate::check::RECENT_MAX {
            let object = Path::from("m/1");
            prop_assert_eq!(decode_root(&object, &encode_root(&object, &root).unwrap()).unwrap(), root);
        }
    }
}

#[test]
fn random_histories_reach_every_kind_of_change() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut accepted = std::collections::HashMap::new();
    for _ in 0..200 {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let mut root = Root::empty(timeline(), None);
        for (n, step) in steps.iter().enumerate() {
            let change = change_of(step, &root, n as u64 + 1);
            if let Ok(next) = apply(&root, std::slice::from_ref(&change), id(n as u64)) {
                *accepted.entry(std::mem::discriminant(&change)).or_insert(0) += 1;
                root = next;
            }
        }
    }
    assert_eq!(accepted.len(), 5, "each kind but the branch's beginning is accepted now and then");
    assert!(accepted.values().all(|&times| times > 20), "{:?}", accepted.values());
}
