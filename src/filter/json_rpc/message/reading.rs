//! How a message is read: member by member, as far as the body goes.

use std::fmt;

use serde::{
    Deserialize, Deserializer as _,
    de::{DeserializeSeed, MapAccess, SeqAccess, Unexpected, Visitor},
};
use serde_json::{Deserializer, value::RawValue};

use super::{Fault, Id, MAX_READ, Message, input_responses::InputResponses};
use crate::filter::json_rpc::cut::{self, Member, offset};

/// Where a request of 2026-07-28 or later names its revision of the protocol, in `_meta`, and what its client can do.
pub(super) const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
pub(super) const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

impl<'a> Message<'a> {
    /// Reads a body's first [`MAX_READ`] bytes; `is_whole` is whether these are all that there is of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(body: &'a [u8], is_whole: bool) -> Result<Self, Fault> {
        let read = body.get(..MAX_READ).unwrap_or(body);
        let is_cut = !is_whole || read.len() < body.len();
        if read.is_empty() && !is_cut {
            return Err(Fault::Empty);
        }
        let mut reading = Reading { message: Self { read, ..Self::default() }, fault: None };
        let mut json = Deserializer::from_slice(read);
        let ended = json.deserialize_any(&mut reading).and_then(|()| json.end());
        let Reading { mut message, fault, .. } = reading;
        match ended {
            Ok(()) => Ok(message),
            Err(error) if fault.is_none() && error.is_eof() && is_cut => {
                message.is_cut = true;
                Ok(message)
            }
            Err(error) => Err(fault.unwrap_or(if error.is_data() { Fault::Type } else { Fault::NotJson })),
        }
    }
}

/// The members that are looked at, while they are read.
struct Reading<'de> {
    message: Message<'de>,
    fault: Option<Fault>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Name {
    Id,
    Method,
    Params,
    Result,
    Error,
    #[serde(other)]
    Other,
}

/// Ends the reading.
fn fails<E: serde::de::Error>(at: &mut Option<Fault>, fault: Fault) -> E {
    *at = Some(fault);
    E::custom(fault.reason())
}

impl<'de> Visitor<'de> for &mut Reading<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON-RPC message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Reading { message, fault } = self;
        let (mut has_id, mut has_params) = (false, false);
        while let Some(member) = map.next_key()? {
            match member {
                Name::Id if has_id => return Err(fails(fault, Fault::Twice)),
                Name::Id => {
                    has_id = true;
                    let value: &'de RawValue = map.next_value()?;
                    let Some(id) = Id::new(value) else { return Err(fails(fault, Fault::Id)) };
                    // A number at the very end may go on after the cut; a text has its end.
                    let ends_here = value.get().as_bytes().as_ptr_range().end == message.read.as_ptr_range().end;
                    if value.get().starts_with('"') || !ends_here {
                        message.id = Some(id);
                    }
                }
                Name::Method if message.method.is_some() => return Err(fails(fault, Fault::Twice)),
                Name::Method => message.method = Some(map.next_value()?),
                Name::Params if has_params => return Err(fails(fault, Fault::Twice)),
                Name::Params => {
                    has_params = true;
                    map.next_value_seed(InParams { message, fault })?;
                }
                Name::Result | Name::Error | Name::Other => {
                    message.is_response |= !matches!(member, Name::Other);
                    map.next_value_seed(Below { place: Place::Elsewhere, message, fault })?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(fails(&mut self.fault, Fault::Batch))
    }
}

/// The value of `params`.
struct InParams<'r, 'de> {
    message: &'r mut Message<'de>,
    fault: &'r mut Option<Fault>,
}

impl<'de> DeserializeSeed<'de> for InParams<'_, 'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Forwards what is not an object: nothing is looked for there.
macro_rules! read_over {
    ($($visit:ident($value:ty);)*) => {$(
        fn $visit<E: serde::de::Error>(self, _: $value) -> Result<(), E> {
            Ok(())
        }
    )*};
}

impl<'de> Visitor<'de> for InParams<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("parameters")
    }

    read_over! {
        visit_str(&str);
        visit_bool(bool);
        visit_i64(i64);
        visit_u64(u64);
        visit_f64(f64);
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        Below { place: Place::Elsewhere, message: self.message, fault: self.fault }.visit_seq(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { message, fault } = self;
        let (mut members, mut known) = (Vec::new(), Vec::new());
        let mut state = None;
        let mut responses = None;
        while let Some(name) = map.next_key::<&'de RawValue>()? {
            let start = offset(message.read, name.get());
            let Ok(name) = serde_json::from_str::<String>(name.get()) else {
                return Err(fails(fault, Fault::NotJson));
            };
            let is_known =
                ["_meta", "name", "uri", "arguments", "requestState", "inputResponses"].contains(&name.as_str());
            if is_known && known.contains(&name) {
                return Err(fails(fault, Fault::Twice));
            }
            members.push(Member { start, end: start, goes: false });
            let at = members.len() - 1;
            match name.as_str() {
                "_meta" => map.next_value_seed(Below { place: Place::Meta, message, fault })?,
                _ if is_known => {
                    let value: &'de RawValue = map.next_value()?;
                    // As deep as the rest may be.
                    let over = Below { place: Place::Elsewhere, message, fault };
                    if over.deserialize(&mut Deserializer::from_str(value.get())).is_err() {
                        return Err(fails(fault, Fault::NotJson));
                    }
                    let end = offset(message.read, value.get()) + value.get().len();
                    if let Some(member) = members.last_mut() {
                        member.end = end;
                    }
                    match name.as_str() {
                        "name" => message.params.name = Some(value),
                        "uri" => message.params.uri = Some(value),
                        "arguments" => message.params.arguments = Some(value),
                        "requestState" => {
                            state = Some(at);
                            message.params.state = serde_json::from_str(value.get()).ok();
                        }
                        _ => responses = Some((at, value)),
                    }
                }
                _ => map.next_value_seed(Below { place: Place::Elsewhere, message, fault })?,
            }
            if is_known {
                known.push(name);
            }
        }
        message.params.is_round = state.is_some() || responses.is_some();
        let answers = responses.map(|(at, value)| (at, InputResponses::read(message.read, value)));
        if message.state().is_none() {
            return Ok(());
        }
        // What there is of ours, in the order that it stands in.
        let mut inner = Vec::new();
        if let Some((at, answers)) = answers {
            let InputResponses { members: of_answers, connect } = match answers {
                Ok(answers) => answers,
                Err(twice) => return Err(fails(fault, twice)),
            };
            message.params.connect = connect;
            if of_answers.iter().all(|answer| answer.goes) {
                goes(&mut members, Some(at));
            } else {
                inner = cut::gaps(message.read, &of_answers);
            }
        }
        goes(&mut members, state);
        let mut gaps = cut::gaps(message.read, &members);
        gaps.extend(inner);
        gaps.sort_by_key(|gap| gap.start);
        message.params.gaps = gaps;
        Ok(())
    }
}

fn goes(members: &mut [Member], at: Option<usize>) {
    if let Some(member) = at.and_then(|at| members.get_mut(at)) {
        member.goes = true;
    }
}

/// What is looked for at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing.
    Elsewhere,
    Meta,
    /// A text.
    Version,
    Capabilities,
    Elicitation,
    /// An object: that it is there.
    Url,
}

impl Place {
    fn below(self, name: &str) -> Self {
        match (self, name) {
            (Self::Meta, VERSION) => Self::Version,
            (Self::Meta, CAPABILITIES) => Self::Capabilities,
            (Self::Capabilities, "elicitation") => Self::Elicitation,
            (Self::Elicitation, "url") => Self::Url,
            _ => Self::Elsewhere,
        }
    }
}

/// A value at a place. What nothing is looked for in is only read over, value by value, so that what is nested too deep
/// fails as it does elsewhere in `serde_json`: to ignore it would let any depth pass.
struct Below<'r, 'de> {
    place: Place,
    message: &'r mut Message<'de>,
    fault: &'r mut Option<Fault>,
}

impl Below<'_, '_> {
    fn no_text<E: serde::de::Error>(&self, found: Unexpected<'_>) -> Result<(), E> {
        match self.place {
            Place::Version => Err(E::invalid_type(found, &"a text")),
            _ => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Below<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Below<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if self.place == Place::Version {
            self.message.version = Some(text.to_owned());
        }
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.no_text(Unexpected::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.no_text(Unexpected::Signed(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.no_text(Unexpected::Unsigned(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.no_text(Unexpected::Float(value))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.no_text(Unexpected::Unit)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.no_text::<A::Error>(Unexpected::Seq)?;
        let Self { message, fault, .. } = self;
        while items.next_element_seed(Below { place: Place::Elsewhere, message, fault })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        self.no_text::<A::Error>(Unexpected::Map)?;
        let Self { place, message, fault } = self;
        message.opens_urls |= place == Place::Url;
        let mut found = Vec::new();
        while let Some(name) = members.next_key::<String>()? {
            let place = place.below(&name);
            if place != Place::Elsewhere {
                if found.contains(&place) {
                    return Err(fails(fault, Fault::Twice));
                }
                found.push(place);
            }
            members.next_value_seed(Below { place, message, fault })?;
        }
        Ok(())
    }
}
