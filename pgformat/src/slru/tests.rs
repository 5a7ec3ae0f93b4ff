use super::*;
use proptest::prelude::*;

#[test]
fn sizes_are_postgresqls() {
    assert_eq!(clog::XACTS_PER_PAGE, 32_768);
    assert_eq!(commit_ts::XACTS_PER_PAGE, 819);
    assert_eq!(multixact::OFFSETS_PER_PAGE, 2048);
    assert_eq!(multixact::MEMBERS_PER_PAGE, 1636);
    assert_eq!(SEGMENT_LEN, 262_144);
}

#[test]
fn segment_names_read_back_and_others_are_left_alone() {
    for segment in [0, 1, 0xFFF, 0xFFFF, 0x1_0000, 0x14078] {
        assert_eq!(parse_segment_name(&segment_name(segment)), Some(segment));
    }
    for name in ["", "000", "00000", "000g", "000a", "0000000", "0000.tmp", "+000"] {
        assert_eq!(parse_segment_name(name), None, "{name}");
    }
}

#[test]
fn transactions_are_ordered_over_the_wrap() {
    assert!(xid_precedes(3, 4));
    assert!(xid_precedes(u32::MAX, 3));
    assert!(!xid_precedes(3, u32::MAX));
    assert!(xid_precedes(2, u32::MAX), "permanent ids are older than all");
    assert_eq!(xid_advance(u32::MAX), 3);
    assert_eq!(full_xid_near(0x1_0000_0005, u32::MAX), 0xFFFF_FFFF);
    assert_eq!(full_xid_near(0x0_FFFF_FFF0, 5), 0x1_0000_0005);
    assert_eq!(full_xid_near(800, 700), 700);
    assert_eq!(full_xid_near(5, u32::MAX), u64::from(u32::MAX), "nothing is before epoch 0");
}

#[test]
fn multixacts_step_over_zero() {
    assert_eq!(multixact::next_multi(u32::MAX), 1);
    assert_eq!(multixact::previous_multi(1), u32::MAX);
    assert_eq!(multixact::previous_multi(2), 1);
}

/// The cases of `SlruPagePrecedesUnitTests` (slru.c): a page and the ones half the space away.
#[test]
fn half_of_the_space_away_is_not_before() {
    let pages = 1u32 << 31 >> 15; // pages of pg_xact in half the space
    assert!(clog::page_precedes(0, 1));
    assert!(!clog::page_precedes(1, 0));
    assert!(clog::page_precedes(0, pages - 1));
    assert!(!clog::page_precedes(0, pages));
    assert!(!clog::page_precedes(pages, 0));
    assert!(clog::page_precedes(pages + 1, 0));
}

#[test]
fn a_segment_goes_only_when_all_of_it_precedes_the_cutoff() {
    assert!(!may_delete_segment(clog::page_precedes, 0, 31));
    assert!(may_delete_segment(clog::page_precedes, 0, 32));
    assert!(!may_delete_segment(clog::page_precedes, 1, 32));
    // The cutoff in the first pages after the wrap: the last segments are old, the first is not.
    assert!(may_delete_segment(clog::page_precedes, 0xFFF, 1));
    assert!(!may_delete_segment(clog::page_precedes, 0, 1));
}

#[test]
fn member_segments_are_removed_over_the_wrap() {
    let last = multixact::member_segment(u32::MAX);
    assert_eq!(last, 82_040);
    let removed = |from, to| multixact::member_segments_removed(from, to).collect::<Vec<_>>();
    assert_eq!(removed(0, 0), Vec::<u32>::new());
    assert_eq!(removed(0, 1636 * 32), vec![0]);
    assert_eq!(removed(u32::MAX, 1636 * 32), vec![last, 0]);
}

#[test]
fn only_a_member_that_updated_is_the_updater() {
    let mut page = vec![0; BLCKSZ];
    // The second group's first two members: FOR UPDATE, and UPDATE.
    page[20..22].copy_from_slice(&[3, 5]);
    page[24..28].copy_from_slice(&700_u32.to_le_bytes());
    page[28..32].copy_from_slice(&701_u32.to_le_bytes());
    assert_eq!(multixact::updater(&page, 4), None);
    assert_eq!(multixact::updater(&page, 5), Some(701));
    assert_eq!(multixact::updater(&page[..31], 5), None, "cut short");
}

#[test]
fn members_lie_in_groups_after_their_flags() {
    assert_eq!(multixact::member_position(0), 4);
    assert_eq!(multixact::member_position(3), 16);
    assert_eq!(multixact::member_position(4), 24);
    assert_eq!(multixact::member_flag_position(5), 21);
    assert_eq!(multixact::member_page(1636), 1);
    assert_eq!(multixact::member_position(1635) + 4, 409 * 20);
}

proptest! {
    #[test]
    fn a_status_reads_back_and_leaves_its_neighbours(xid in any::<u32>(), status in 0u8..4) {
        let status = [
            clog::XactStatus::InProgress,
            clog::XactStatus::Committed,
            clog::XactStatus::Aborted,
            clog::XactStatus::SubCommitted,
        ][usize::from(status)];
        let mut page = vec![0b1001_1001; BLCKSZ];
        let neighbour = xid ^ 1;
        let before = clog::status(&page, neighbour);
        clog::set_status(&mut page, xid, status);
        prop_assert_eq!(clog::status(&page, xid), Some(status));
        prop_assert_eq!(clog::status(&page, neighbour), before);
    }

    #[test]
    fn cut_pages_never_panic(xid in any::<u32>(), length in 0usize..BLCKSZ) {
        let mut page = vec![0; length];
        clog::set_status(&mut page, xid, clog::XactStatus::Aborted);
        clog::status(&page, xid);
        commit_ts::set_entry(&mut page, xid, 1, 2);
        commit_ts::entry(&page, xid);
    }

    #[test]
    fn a_commit_time_reads_back(xid in any::<u32>(), time in any::<i64>(), origin in any::<u16>()) {
        let mut page = vec![0; BLCKSZ];
        commit_ts::set_entry(&mut page, xid, time, origin);
        prop_assert_eq!(commit_ts::entry(&page, xid), Some((time, origin)));
    }

    #[test]
    fn no_page_precedes_itself_and_never_both_ways(first in 0u32..1 << 17, second in 0u32..1 << 17) {
        for precedes in [clog::page_precedes, commit_ts::page_precedes, multixact::offset_page_precedes,
                         multixact::member_page_precedes] {
            prop_assert!(!precedes(first, first));
            prop_assert!(!(precedes(first, second) && precedes(second, first)));
        }
    }

    #[test]
    fn every_number_has_a_place(number in any::<u32>()) {
        prop_assert!(multixact::member_position(number) + 4 <= BLCKSZ);
        prop_assert!(multixact::member_flag_position(number) < BLCKSZ);
        prop_assert!(multixact::offset_position(number) + 4 <= BLCKSZ);
        prop_assert!(commit_ts::position(number) + commit_ts::ENTRY_LEN <= BLCKSZ);
    }
}
