//! What a check found, for people.

use crate::cli::output;
use std::collections::BTreeMap;
use std::fmt::Write;
use zenith_reader::WalCheck;
use zenith_reader::consistency::{StampCounts, Stretch};

/// The whole report.
pub(super) fn text(check: &WalCheck) -> String {
    let mut text = String::new();
    if check.stretches.is_empty() {
        text.push_str("there is no WAL behind a base image's end: nothing was checked\n");
        return text;
    }
    for Stretch { from, to } in &check.stretches {
        let _ = writeln!(text, "WAL from {from} to {to}");
    }
    let _ = writeln!(
        text,
        "{} records; {} block references redone whole and as they are stored; {} pages compared with the server's\n\
         {} pages read from the store and compared with redo of the whole WAL; {} changes of visibility maps",
        check.records, check.references, check.images, check.pages_read, check.map_edits
    );
    if check.references > 0 {
        text.push_str(&output::table(&by_resource_manager(check)));
        text.push_str(&stamps(check.stamps));
    }
    if check.images == 0 {
        text.push_str(
            "This WAL carries no images to check against: redo was compared only with itself. Set \
             wal_consistency_checking = all\non the primary, for a time, to have it compared with the server's own pages.\n",
        );
    }
    for difference in &check.first {
        let _ = writeln!(text, "{difference}");
    }
    let listed = check.first.len() as u64;
    match check.differences {
        0 => text.push_str("no differences\n"),
        all if all > listed => {
            let _ = writeln!(text, "{all} differences, of which the first {listed} are listed");
        }
        1 => text.push_str("1 difference\n"),
        all => {
            let _ = writeln!(text, "{all} differences");
        }
    }
    text
}

fn stamps(stamps: StampCounts) -> String {
    let StampCounts { moved, kept, locked_only, visibility_map } = stamps;
    format!(
        "LSNs of pages: {moved} moved to the record's end; not moved, as expected: {kept} heap pages set all-visible, \
         {locked_only} hash buckets only locked; {visibility_map} visibility map pages\n"
    )
}

/// One line for each resource manager.
fn by_resource_manager(check: &WalCheck) -> Vec<Vec<String>> {
    let mut sums: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
    for counts in &check.types {
        let sum = sums.entry(&counts.rmgr).or_default();
        let own = [counts.records, counts.references, counts.images, counts.differences];
        sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
    }
    let heading = ["resource manager", "records", "blocks", "compared with the server's", "differences"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (rmgr, sum) in sums {
        let mut row = vec![rmgr.to_owned()];
        row.extend(sum.map(|count| count.to_string()));
        rows.push(row);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use zenith_pgformat::Lsn;
    use zenith_reader::consistency::{Difference, Problem, TypeCounts};

    fn check() -> WalCheck {
        let counts = |record, images, differences| TypeCounts {
            rmgr: "Heap".to_owned(),
            record,
            records: 10,
            references: 12,
            images,
            differences,
        };
        WalCheck {
            stretches: vec![Stretch { from: Lsn(0x100), to: Lsn(0x200) }],
            references: 24,
            types: vec![counts("INSERT", 0, 0), counts("UPDATE", 5, 3)],
            ..WalCheck::default()
        }
    }

    #[test]
    fn wal_without_images_is_said_to_be_so() {
        let said = text(&check());
        assert!(said.contains("no images") && said.contains("wal_consistency_checking"), "{said}");
        let said = text(&WalCheck { images: 1, ..check() });
        assert!(!said.contains("no images") && said.contains("no differences"), "{said}");
        assert!(said.contains("Heap              20       24      5"), "{said}");
    }

    #[test]
    fn a_difference_names_record_relation_block_and_byte() {
        let difference = Difference {
            start: Lsn(0x128),
            end: Lsn(0x180),
            rmgr: Some("Heap".to_owned()),
            record: Some("UPDATE"),
            relation: "1663/5/16384".to_owned(),
            fork: "main",
            block: 7,
            problem: Problem::Image { offset: 8100 },
        };
        let said = text(&WalCheck { differences: 3, first: vec![difference], ..check() });
        for word in [
            "0/128 Heap UPDATE",
            "1663/5/16384 fork main block 7",
            "byte 8100",
            "3 differences, of which the first 1",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}
