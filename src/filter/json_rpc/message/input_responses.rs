//! What a client answers to what it was asked (MCP 2026-07-28, Multi Round-Trip Requests): ours is read, and theirs stay.

use std::fmt;

use serde::{
    Deserialize, Deserializer as _,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::{Deserializer, value::RawValue};

use super::{Answered, CONNECT, Fault};
use crate::filter::json_rpc::cut::{Member, offset};

/// The members of `inputResponses`, of which ours goes.
pub(super) struct InputResponses {
    pub members: Vec<Member>,
    pub connect: Option<Answered>,
}

#[derive(Deserialize)]
struct Response {
    action: Action,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Accept,
    Decline,
    Cancel,
}

impl InputResponses {
    /// What is not an object has no members.
    ///
    /// # Errors
    /// Where ours is there twice.
    pub fn read(text: &[u8], value: &RawValue) -> Result<Self, Fault> {
        let mut of = ReadingAnswers { text, answers: Self { members: Vec::new(), connect: None }, is_twice: false };
        let is_object = Deserializer::from_str(value.get()).deserialize_map(&mut of).is_ok();
        match of {
            ReadingAnswers { is_twice: true, .. } => Err(Fault::Twice),
            ReadingAnswers { answers, .. } if is_object => Ok(answers),
            // Whatever it is, it stays.
            _ => Ok(Self { members: vec![Member { start: 0, end: 0, goes: false }], connect: None }),
        }
    }
}

struct ReadingAnswers<'t> {
    text: &'t [u8],
    answers: InputResponses,
    is_twice: bool,
}

impl<'de> Visitor<'de> for &mut ReadingAnswers<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("answers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<&'de RawValue>()? {
            let value: &'de RawValue = map.next_value()?;
            let start = offset(self.text, name.get());
            let end = offset(self.text, value.get()) + value.get().len();
            let goes = serde_json::from_str::<String>(name.get()).is_ok_and(|name| name == CONNECT);
            if goes && self.answers.connect.is_some() {
                self.is_twice = true;
                return Err(A::Error::custom(Fault::Twice.reason()));
            }
            if goes {
                self.answers.connect = Some(match serde_json::from_str(value.get()) {
                    Ok(Response { action: Action::Accept }) => Answered::Accepted,
                    Ok(Response { action: Action::Decline | Action::Cancel }) => Answered::Refused,
                    Err(_) => Answered::Unclear,
                });
            }
            self.answers.members.push(Member { start, end, goes });
        }
        Ok(())
    }
}
