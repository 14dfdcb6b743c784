//! A machine's snapshots in the order they are shown: a tree in lanes. What came after a point follows it in the same lane;
//! what branched off there has a lane of its own, further in. The branch that a person is on comes last and keeps the lane.

use std::collections::{HashMap, HashSet};

use super::model::Snapshot;

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The snapshot of this number.
    Snapshot(usize),
    /// The machine as it is now.
    Here,
}

/// A row of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What it is about.
    pub point: Point,
    /// Its lane, from 0.
    pub lane: usize,
    /// It begins its lane, coming from the one before; otherwise from what is above it in its own lane, if anything is.
    pub branches: bool,
    /// It comes after something.
    pub follows: bool,
    /// Something comes after it in its own lane.
    pub goes_on: bool,
    /// Lanes that go past it.
    pub passing: Vec<usize>,
}

/// The rows for these snapshots, each once, whatever their parents say, and one for the present.
pub fn rows(snapshots: &[Snapshot]) -> Vec<Row> {
    let numbers: HashMap<&str, usize> = snapshots.iter().enumerate().map(|(i, one)| (one.id.as_str(), i)).collect();
    let parent = |i: usize| {
        let parent = snapshots.get(i)?.parent.as_deref()?;
        numbers.get(parent).copied().filter(|&parent| parent != i)
    };
    let mut after: HashMap<Option<usize>, Vec<Point>> = HashMap::new();
    for i in 0..snapshots.len() {
        after.entry(parent(i)).or_default().push(Point::Snapshot(i));
    }
    let present = snapshots.iter().position(|one| one.is_present);
    after.entry(present).or_default().push(Point::Here);
    // Where the present stands, and what that came after.
    let mut way = HashSet::new();
    let mut at = present;
    while let Some(i) = at.filter(|&i| way.insert(i)) {
        at = parent(i);
    }
    let mut placed = Placed { rows: Vec::new(), seen: HashSet::new() };
    for root in after.get(&None).into_iter().flatten() {
        placed.place(*root, &after, &way);
    }
    // Parents that lead round in a circle: no file of ours has them.
    for i in 0..snapshots.len() {
        placed.place(Point::Snapshot(i), &after, &way);
    }
    if present.is_some() && !placed.rows.iter().any(|row| row.point == Point::Here) {
        placed.place(Point::Here, &after, &way);
    }
    placed.rows
}

struct Placed {
    rows: Vec<Row>,
    seen: HashSet<usize>,
}

impl Placed {
    /// Adds a point and all that came after it.
    fn place(&mut self, root: Point, after: &HashMap<Option<usize>, Vec<Point>>, way: &HashSet<usize>) {
        let start = Row { point: root, lane: 0, branches: false, follows: false, goes_on: false, passing: Vec::new() };
        let mut open = vec![start];
        while let Some(mut row) = open.pop() {
            let Point::Snapshot(number) = row.point else {
                self.rows.push(row);
                continue;
            };
            if !self.seen.insert(number) {
                continue;
            }
            let mut next = after.get(&Some(number)).cloned().unwrap_or_default();
            next.retain(|point| !matches!(point, Point::Snapshot(i) if self.seen.contains(i)));
            let here = |point: &Point| match point {
                Point::Here => true,
                Point::Snapshot(i) => way.contains(i),
            };
            let main = next.iter().position(here).or(next.len().checked_sub(1)).map(|i| next.remove(i));
            row.goes_on = main.is_some();
            // Those that were opened last come first.
            let below =
                |point, lane, branches, passing| Row { point, lane, branches, follows: true, goes_on: false, passing };
            open.extend(main.map(|point| below(point, row.lane, false, row.passing.clone())));
            let passing: Vec<usize> = row.passing.iter().copied().chain([row.lane]).collect();
            open.extend(next.into_iter().rev().map(|point| below(point, row.lane + 1, true, passing.clone())));
            self.rows.push(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snapshot(id: &str, parent: Option<&str>, is_present: bool) -> Snapshot {
        let (name, note, taken) = (id.to_string(), String::new(), String::new());
        Snapshot {
            id: id.into(),
            name,
            note,
            taken,
            parent: parent.map(Into::into),
            running: false,
            size: 0,
            is_present,
            is_checkpoint: false,
        }
    }

    /// One line for each row: its lane, and its name.
    fn drawn(snapshots: &[Snapshot]) -> Vec<String> {
        let line = |row: &Row| {
            let name = match row.point {
                Point::Snapshot(i) => snapshots[i].name.as_str(),
                Point::Here => "here",
            };
            format!("{}{}{name}", "  ".repeat(row.lane), if row.branches { "\\" } else { "" })
        };
        rows(snapshots).iter().map(line).collect()
    }

    #[test]
    fn a_machine_without_snapshots_is_only_here() {
        assert_eq!(drawn(&[]), ["here"]);
    }

    #[test]
    fn a_line_of_snapshots_stays_in_one_lane() {
        let all = [snapshot("a", None, false), snapshot("b", Some("a"), false), snapshot("c", Some("b"), true)];
        assert_eq!(drawn(&all), ["a", "b", "c", "here"]);
        let rows = rows(&all);
        assert_eq!(
            rows.iter().map(|row| (row.follows, row.goes_on)).collect::<Vec<_>>(),
            [(false, true), (true, true), (true, true), (true, false)]
        );
    }

    #[test]
    fn the_branch_that_a_person_is_on_keeps_the_lane_and_others_go_in() {
        let all = [
            snapshot("root", None, false),
            snapshot("mine", Some("root"), true),
            snapshot("other", Some("root"), false),
            snapshot("other 2", Some("other"), false),
        ];
        assert_eq!(drawn(&all), ["root", "  \\other", "  other 2", "mine", "here"]);
        let passing: Vec<Vec<usize>> = rows(&all).into_iter().map(|row| row.passing).collect();
        assert_eq!(passing, [vec![], vec![0], vec![0], vec![], vec![]]);
    }

    #[test]
    fn the_present_may_stand_before_what_came_after_or_on_nothing() {
        let all = [snapshot("a", None, true), snapshot("b", Some("a"), false)];
        assert_eq!(drawn(&all), ["a", "  \\b", "here"]);
        let all = [snapshot("a", None, false), snapshot("b", Some("a"), false)];
        assert_eq!(drawn(&all), ["a", "b", "here"]);
    }

    #[test]
    fn a_parent_that_is_gone_makes_a_root_and_a_circle_is_no_trap() {
        let all = [snapshot("a", Some("gone"), false), snapshot("b", Some("b"), true)];
        assert_eq!(drawn(&all), ["a", "b", "here"]);
        let all = [snapshot("a", Some("b"), true), snapshot("b", Some("a"), false)];
        assert_eq!(rows(&all).len(), 3);
    }

    proptest! {
        #[test]
        fn every_snapshot_has_one_row_and_so_has_the_present(
            parents in proptest::collection::vec(proptest::option::of(0usize..12), 0..12),
            present in 0usize..14,
        ) {
            let all: Vec<Snapshot> = parents
                .iter()
                .enumerate()
                .map(|(i, parent)| snapshot(&i.to_string(), parent.map(|p| p.to_string()).as_deref(), i == present))
                .collect();
            let rows = rows(&all);
            let mut numbers: Vec<Option<usize>> = rows
                .iter()
                .map(|row| match row.point {
                    Point::Snapshot(i) => Some(i),
                    Point::Here => None,
                })
                .collect();
            numbers.sort_unstable();
            let expected: Vec<Option<usize>> = std::iter::once(None).chain((0..all.len()).map(Some)).collect();
            prop_assert_eq!(numbers, expected);
            for row in &rows {
                prop_assert!(row.passing.iter().all(|&lane| lane < row.lane) && (!row.branches || row.lane > 0));
            }
        }
    }
}
