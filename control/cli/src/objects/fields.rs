//! A field of a spec as an option of a command: how it is written, and what it is in JSON.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

/// A field that commands can set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    /// The option, without `--`.
    pub(super) flag: &'static str,
    /// Where it is in the spec, with dots.
    pub(super) path: &'static str,
    /// How it is written.
    pub(super) form: Form,
    /// What help says of it.
    pub(super) help: &'static str,
    /// Whether `create` needs it.
    pub(super) required: bool,
}

impl Field {
    pub(super) const fn new(flag: &'static str, path: &'static str, form: Form, help: &'static str) -> Self {
        Self { flag, path, form, help, required: false }
    }

    pub(super) const fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

/// How a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A word; its placeholder.
    Text(&'static str),
    /// A word of a choice.
    Choice(&'static [&'static str]),
    /// A number.
    Number,
    /// `true` or `false`; without a value: true.
    Switch,
    /// Words; its placeholder.
    Texts(&'static str),
    /// `ADDRESS=GATEWAY`, an object.
    Pins,
    /// `ADDRESS:PORT[,weight=N][,mapped_port=N][,zone=ZONE]`.
    Targets,
    /// `PROTOCOL:PORT[-LAST]=GROUP[*WEIGHT][+GROUP[*WEIGHT]…][,idle_seconds=N][,mss=N][,reset_on_expiry=true]`.
    Listeners,
    /// `DESTINATION[=ROUTER]`.
    Routes,
    /// `ADDRESS|any[,zone=ZONE][,gateway=GATEWAY]`.
    Addresses,
    /// `SOURCE[,protocol=tcp|udp|icmp][,ports=FIRST-LAST]`.
    Rules,
}

impl Form {
    /// What stands for the value in help.
    pub(super) const fn placeholder(self) -> &'static str {
        match self {
            Self::Text(name) | Self::Texts(name) => name,
            Self::Choice(_) => "WORD",
            Self::Number => "NUMBER",
            Self::Switch => "true|false",
            Self::Pins => "ADDRESS=GATEWAY",
            Self::Targets => "ADDRESS:PORT[,weight=N][,mapped_port=N][,zone=ZONE]",
            Self::Listeners => {
                "PROTOCOL:PORT[-LAST]=GROUP[*WEIGHT][+GROUP…][,idle_seconds=N][,mss=N][,reset_on_expiry=true]"
            }
            Self::Routes => "DESTINATION[=ROUTER]",
            Self::Addresses => "ADDRESS|any[,zone=ZONE][,gateway=GATEWAY]",
            Self::Rules => "SOURCE[,protocol=tcp|udp][,ports=FIRST-LAST]",
        }
    }

    /// Whether it may be said several times.
    pub(super) const fn repeats(self) -> bool {
        matches!(
            self,
            Self::Texts(_)
                | Self::Pins
                | Self::Targets
                | Self::Listeners
                | Self::Routes
                | Self::Addresses
                | Self::Rules
        )
    }

    /// One value of it; of a form that repeats, one item.
    pub(super) fn value(self, text: &str) -> Result<Value, String> {
        match self {
            Self::Text(_) | Self::Texts(_) | Self::Choice(_) => Ok(Value::from(text)),
            Self::Number => number(text),
            Self::Switch => match text {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err(format!("{text:?} is neither true nor false")),
            },
            Self::Pins => {
                let (address, gateway) = text.split_once('=').ok_or_else(|| self.wrong(text))?;
                let address: IpAddr = address.parse().map_err(|_| self.wrong(text))?;
                Ok(json!({ address.to_string(): gateway }))
            }
            Self::Targets => target(text).ok_or_else(|| self.wrong(text)),
            Self::Listeners => listener(text).ok_or_else(|| self.wrong(text)),
            Self::Routes => {
                let (destination, via) = text.split_once('=').map_or((text, None), |(left, right)| (left, Some(right)));
                Ok(with([("destination", Some(destination.into())), ("via", via.map(Value::from))]))
            }
            Self::Addresses => {
                let (address, pairs) = pairs(text, &["zone", "gateway"]).ok_or_else(|| self.wrong(text))?;
                let mut item = pairs;
                if address != "any" {
                    item.insert("address".to_owned(), address.into());
                }
                Ok(Value::Object(item))
            }
            Self::Rules => {
                let (source, pairs) = pairs(text, &["protocol", "ports"]).ok_or_else(|| self.wrong(text))?;
                let mut item = pairs;
                item.insert("source".to_owned(), source.into());
                Ok(Value::Object(item))
            }
        }
    }

    /// What several of them are together.
    pub(super) fn join(self, items: Vec<Value>) -> Value {
        match self {
            Self::Pins => {
                let objects = items.into_iter().filter_map(|item| match item {
                    Value::Object(object) => Some(object),
                    _ => None,
                });
                Value::Object(objects.flatten().collect())
            }
            form if form.repeats() => Value::Array(items),
            _ => items.into_iter().next_back().unwrap_or(Value::Null),
        }
    }

    fn wrong(self, text: &str) -> String {
        format!("{text:?} is not of the form {}", self.placeholder())
    }
}

/// Reads `ADDRESS:PORT` and what may follow it.
pub(super) fn target(text: &str) -> Option<Value> {
    let (address, mut item) = pairs(text, &["weight", "mapped_port", "zone"])?;
    let socket: std::net::SocketAddr = address.parse().ok()?;
    item.insert("address".to_owned(), socket.ip().to_string().into());
    item.insert("port".to_owned(), socket.port().into());
    Some(Value::Object(item))
}

fn listener(text: &str) -> Option<Value> {
    let (place, rest) = text.split_once('=')?;
    let (protocol, port) = place.split_once(':')?;
    let (groups, mut item) = pairs(rest, &["idle_seconds", "mss", "reset_on_expiry"])?;
    let groups = groups.split('+').map(|group| {
        let (name, weight) = group.split_once('*').map_or((group, None), |(name, weight)| (name, Some(weight)));
        let weight = weight.map(|weight| weight.parse::<u16>().ok().map(Value::from));
        match weight {
            _ if name.is_empty() => None,
            Some(None) => None,
            Some(weight) => Some(with([("target_group", Some(name.into())), ("weight", weight)])),
            None => Some(json!({ "target_group": name })),
        }
    });
    item.insert("protocol".to_owned(), protocol.into());
    if port.contains('-') {
        item.insert("ports".to_owned(), port.into());
        // One of the two: no port beside the range.
        item.insert("port".to_owned(), 0.into());
    } else {
        item.insert("port".to_owned(), port.parse::<u16>().ok()?.into());
    }
    item.insert("target_groups".to_owned(), groups.collect::<Option<Vec<_>>>()?.into());
    Some(Value::Object(item))
}

/// `HEAD[,KEY=VALUE…]` with the keys that there are; digits are numbers where the key asks for one.
fn pairs<'a>(text: &'a str, keys: &[&str]) -> Option<(&'a str, Map<String, Value>)> {
    const NUMBERS: [&str; 4] = ["weight", "mapped_port", "idle_seconds", "mss"];
    let mut parts = text.split(',');
    let head = parts.next().filter(|head| !head.is_empty())?;
    let mut map = Map::new();
    for part in parts {
        let (key, value) = part.split_once('=')?;
        if !keys.contains(&key) || map.contains_key(key) {
            return None;
        }
        let value = match key {
            "reset_on_expiry" => Value::Bool(value.parse().ok()?),
            _ if NUMBERS.contains(&key) => number(value).ok()?,
            _ => Value::from(value),
        };
        map.insert(key.to_owned(), value);
    }
    Some((head, map))
}

fn number(text: &str) -> Result<Value, String> {
    text.parse::<u64>().map(Value::from).map_err(|_| format!("{text:?} is not a number"))
}

fn with<const N: usize>(items: [(&str, Option<Value>); N]) -> Value {
    Value::Object(items.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}

/// Puts a value where a path leads, making what lies between.
pub(super) fn put(spec: &mut Value, path: &str, value: Value) {
    let mut place = spec;
    for key in path.split('.') {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[key];
    }
    *place = value;
}

/// Removes what a path leads to, if it is there.
pub(super) fn remove(spec: &mut Value, path: &str) {
    match path.split_once('.') {
        Some((key, rest)) => {
            if let Some(inner) = spec.get_mut(key) {
                remove(inner, rest);
            }
        }
        None => {
            if let Some(object) = spec.as_object_mut() {
                object.remove(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_read_as_they_are_written() {
        for (form, text, value) in [
            (Form::Targets, "10.0.0.1:80", json!({ "address": "10.0.0.1", "port": 80 })),
            (
                Form::Targets,
                "[fd00::1]:80,weight=3,zone=a",
                json!({ "address": "fd00::1", "port": 80, "weight": 3, "zone": "a" }),
            ),
            (
                Form::Listeners,
                "tcp:443=blue*9+green,idle_seconds=600",
                json!({ "protocol": "tcp", "port": 443, "idle_seconds": 600, "target_groups":
                    [{ "target_group": "blue", "weight": 9 }, { "target_group": "green" }] }),
            ),
            (Form::Routes, "10.0.0.0/8", json!({ "destination": "10.0.0.0/8" })),
            (Form::Routes, "10.0.0.0/8=10.1.0.1", json!({ "destination": "10.0.0.0/8", "via": "10.1.0.1" })),
            (Form::Addresses, "any,zone=a", json!({ "zone": "a" })),
            (Form::Addresses, "10.0.0.9", json!({ "address": "10.0.0.9" })),
            (
                Form::Rules,
                "10.0.0.0/8,protocol=tcp,ports=443",
                json!({ "source": "10.0.0.0/8", "protocol": "tcp", "ports": "443" }),
            ),
            (Form::Pins, "10.0.0.9=gw", json!({ "10.0.0.9": "gw" })),
            (Form::Number, "12", json!(12)),
            (Form::Switch, "false", json!(false)),
        ] {
            assert_eq!(form.value(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn an_item_that_is_not_of_its_form_is_refused_with_the_form() {
        for (form, text) in [
            (Form::Targets, "10.0.0.1"),
            (Form::Targets, "10.0.0.1:80,wait=3"),
            (Form::Targets, "10.0.0.1:80,weight=x"),
            (Form::Targets, "10.0.0.1:80,weight=1,weight=2"),
            (Form::Listeners, "tcp:443"),
            (Form::Listeners, "tcp=web"),
            (Form::Listeners, "tcp:99999=web"),
            (Form::Listeners, "tcp:80=web*"),
            (Form::Listeners, "tcp:80="),
            (Form::Addresses, ""),
            (Form::Rules, "10.0.0.0/8,port=443"),
            (Form::Pins, "gw=10.0.0.9"),
        ] {
            let error = form.value(text).unwrap_err();
            assert!(error.contains(form.placeholder()) && error.contains(text), "{error}");
        }
        assert!(Form::Number.value("-1").is_err());
        assert!(Form::Switch.value("yes").is_err());
    }

    #[test]
    fn a_path_leads_into_objects_that_are_made_on_the_way() {
        let mut spec = json!({ "health_check": null });
        put(&mut spec, "health_check.port", json!(80));
        put(&mut spec, "slots", json!(16_381));
        assert_eq!(spec, json!({ "health_check": { "port": 80 }, "slots": 16_381 }));
        remove(&mut spec, "health_check.port");
        remove(&mut spec, "plain.port");
        remove(&mut spec, "slots");
        assert_eq!(spec, json!({ "health_check": {} }));
    }
}
