//! Members that are cut out of an object, and every other byte stays as it was.

use std::ops::Range;

/// Where a member of an object stands: from its name to the end of its value.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub start: usize,
    /// Of use only of one that goes.
    pub end: usize,
    pub goes: bool,
}

/// Where a part of a text stands in it.
pub(super) fn offset(text: &[u8], part: &str) -> usize {
    part.as_ptr().addr().saturating_sub(text.as_ptr().addr())
}

/// What is to be cut of `text` for those of an object's members that go; all its members are there, in order. What is
/// left is an object: a member goes with the comma that parts it from one that stays.
pub(super) fn gaps(text: &[u8], members: &[Member]) -> Vec<Range<usize>> {
    let mut gaps = Vec::new();
    let mut rest = members;
    let mut follows_another = false;
    while let Some(start) = rest.iter().position(|member| member.goes) {
        let (kept, run) = rest.split_at(start);
        let length = run.iter().position(|member| !member.goes).unwrap_or(run.len());
        let (run, others) = run.split_at(length);
        follows_another |= !kept.is_empty();
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            gaps.push(match others.first() {
                Some(next) => first.start..next.start,
                None if follows_another => comma_before(text, first.start)..last.end,
                None => first.start..last.end,
            });
        }
        rest = others;
    }
    gaps
}

/// Between two members there are white space and one comma.
fn comma_before(text: &[u8], start: usize) -> usize {
    text.get(..start).and_then(|before| before.iter().rposition(|byte| *byte == b',')).unwrap_or(start)
}

/// A text without these parts, which are in order.
pub(super) fn without(text: &[u8], gaps: &[Range<usize>]) -> Vec<u8> {
    let mut left = Vec::with_capacity(text.len());
    let mut from = 0;
    for gap in gaps {
        left.extend_from_slice(text.get(from..gap.start).unwrap_or_default());
        from = gap.end;
    }
    left.extend_from_slice(text.get(from..).unwrap_or_default());
    left
}
