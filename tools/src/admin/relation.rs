//! `DB/REL[/FORK]`: how a person names a relation's file.

use zenith_pgformat::rel::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use zenith_pgformat::{Fork, Oid, RelNode};

/// A fork of a relation, by its numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelationName {
    /// The relation.
    pub node: RelNode,
    /// The fork.
    pub fork: Fork,
}

impl std::str::FromStr for RelationName {
    type Err = String;

    /// `DB/REL` in the default tablespace (`0/REL`: shared, in `global`), `SPC/DB/REL`, each with `/FORK`, or
    /// what `pg_relation_filepath` gives.
    fn from_str(text: &str) -> Result<RelationName, String> {
        let wrong = || {
            format!(
                "\"{text}\" names no relation: write DB/REL or SPC/DB/REL with their numbers, then /main, /fsm, /vm or \
                 /init if it is not the main fork; SELECT pg_relation_filepath('name') gives them"
            )
        };
        if let Some(file) = zenith_pgformat::rel::RelFile::parse(text).filter(|file| file.segment == 0) {
            return Ok(RelationName { node: file.node, fork: file.fork });
        }
        let mut parts: Vec<&str> = text.split('/').collect();
        let named = parts.last().and_then(|last| Fork::ALL.into_iter().find(|fork| fork.name() == *last));
        if named.is_some() {
            parts.pop();
        }
        let numbers: Option<Vec<Oid>> = parts.into_iter().map(number).collect();
        let node = match numbers.as_deref() {
            Some([0, rel]) => RelNode { spc: GLOBAL_TABLESPACE, db: 0, rel: *rel },
            Some([db, rel]) => RelNode { spc: DEFAULT_TABLESPACE, db: *db, rel: *rel },
            Some([spc, db, rel]) => RelNode { spc: *spc, db: *db, rel: *rel },
            _ => return Err(wrong()),
        };
        Ok(RelationName { node, fork: named.unwrap_or(Fork::Main) })
    }
}

fn number(text: &str) -> Option<Oid> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(u32, u32, u32, Fork), String> {
        text.parse::<RelationName>().map(|r| (r.node.spc, r.node.db, r.node.rel, r.fork))
    }

    #[test]
    fn relations_are_named_by_numbers_or_by_their_path() {
        assert_eq!(parsed("5/1259"), Ok((1663, 5, 1259, Fork::Main)));
        assert_eq!(parsed("5/1259/vm"), Ok((1663, 5, 1259, Fork::Vm)));
        assert_eq!(parsed("16400/5/2619/fsm"), Ok((16400, 5, 2619, Fork::Fsm)));
        assert_eq!(parsed("0/1262"), Ok((1664, 0, 1262, Fork::Main)));
        assert_eq!(parsed("base/5/1259_vm"), Ok((1663, 5, 1259, Fork::Vm)));
        assert_eq!(parsed("global/1262"), Ok((1664, 0, 1262, Fork::Main)));
    }

    #[test]
    fn other_texts_are_refused_with_the_form_expected() {
        for text in
            ["", "/", "5", "pg_class", "5/1259/toast", "1/2/3/4", "5/-1", "5/99999999999", "base/5/1259.1"]
        {
            let error = parsed(text).expect_err(text);
            assert!(error.contains("DB/REL"), "{error}");
        }
    }
}
