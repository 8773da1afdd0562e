//! An object of any kind, and what its owner wants of it.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::model::{
    AttachmentSpec, EndpointSpec, EndpointState, EndpointStatus, GatewaySpec, GatewayStatus, Kind, LoadBalancerSpec,
    Metadata, NoStatus, Object, PrincipalSpec, SecurityGroupSpec, ServiceSpec, ServiceStatus, SnatPoolSpec,
    SnatPoolStatus, TargetGroupSpec, TargetGroupStatus, VpcSpec,
};

macro_rules! kinds {
    ($($kind:ident($spec:ty, $status:ty), $as_kind:ident;)*) => {
        /// What an owner wants of an object.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        pub enum Spec {
            $(
                #[doc = concat!("Of a ", stringify!($kind), ".")]
                $kind($spec),
            )*
        }

        /// An object of any kind.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        pub enum AnyObject {
            $(
                #[doc = concat!("A ", stringify!($kind), ".")]
                $kind(Object<$spec, $status>),
            )*
        }

        impl Spec {
            /// The kind of the object.
            #[must_use]
            pub const fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }

            /// Reads the spec of an object of a kind. Unknown fields are refused.
            ///
            /// # Errors
            /// When a field is unknown or of another type.
            pub fn from_value(kind: Kind, value: Value) -> Result<Self, serde_json::Error> {
                match kind {
                    $(Kind::$kind => serde_json::from_value(value).map(Self::$kind),)*
                }
            }
        }

        impl AnyObject {
            /// A new object of which nothing is known yet.
            pub(super) fn new(metadata: Metadata, spec: Spec) -> Self {
                match spec {
                    $(Spec::$kind(spec) => Self::$kind(Object { metadata, spec, status: Default::default() }),)*
                }
            }

            /// Its kind.
            #[must_use]
            pub const fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }

            /// Its identity and history.
            #[must_use]
            pub const fn metadata(&self) -> &Metadata {
                match self {
                    $(Self::$kind(object) => &object.metadata,)*
                }
            }

            pub(super) const fn metadata_mut(&mut self) -> &mut Metadata {
                match self {
                    $(Self::$kind(object) => &mut object.metadata,)*
                }
            }

            /// What its owner wants.
            #[must_use]
            pub fn spec(&self) -> Spec {
                match self {
                    $(Self::$kind(object) => Spec::$kind(object.spec.clone()),)*
                }
            }

            /// Takes another spec of the same kind; one of another kind changes nothing.
            pub(super) fn set_spec(&mut self, spec: Spec) {
                match (self, spec) {
                    $((Self::$kind(object), Spec::$kind(spec)) => object.spec = spec,)*
                    _ => {}
                }
            }

            /// Reads an object of a kind.
            ///
            /// # Errors
            /// When it is not JSON of such an object.
            pub fn from_slice(kind: Kind, json: &[u8]) -> Result<Self, serde_json::Error> {
                match kind {
                    $(Kind::$kind => serde_json::from_slice(json).map(Self::$kind),)*
                }
            }

            $(
                #[doc = concat!("The object, if it is a ", stringify!($kind), ".")]
                #[must_use]
                pub const fn $as_kind(&self) -> Option<&Object<$spec, $status>> {
                    match self {
                        Self::$kind(object) => Some(object),
                        _ => None,
                    }
                }
            )*
        }
    };
}

kinds! {
    Principal(PrincipalSpec, NoStatus), as_principal;
    Gateway(GatewaySpec, GatewayStatus), as_gateway;
    Vpc(VpcSpec, NoStatus), as_vpc;
    Attachment(AttachmentSpec, NoStatus), as_attachment;
    SnatPool(SnatPoolSpec, SnatPoolStatus), as_snat_pool;
    TargetGroup(TargetGroupSpec, TargetGroupStatus), as_target_group;
    LoadBalancer(LoadBalancerSpec, NoStatus), as_load_balancer;
    Service(ServiceSpec, ServiceStatus), as_service;
    Endpoint(EndpointSpec, EndpointStatus), as_endpoint;
    SecurityGroup(SecurityGroupSpec, NoStatus), as_security_group;
}

impl AnyObject {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.metadata().id
    }

    /// Whether it is an endpoint that is gone and only shown for a while: it uses nothing, and its name is free.
    pub(super) fn is_deleted(&self) -> bool {
        self.as_endpoint().is_some_and(|endpoint| endpoint.status.state == EndpointState::Deleted)
    }
}

/// The kind that an id is of.
pub(super) fn kind_of_id(id: &str) -> Option<Kind> {
    let of = |kind: &Kind| {
        id.strip_prefix(kind.id_prefix()).is_some_and(|digits| {
            digits.len() == 17 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    Kind::ALL.into_iter().find(of)
}

/// An object of a file of `postern apply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Its kind.
    pub kind: Kind,
    /// Its name among the caller's own.
    pub name: String,
    /// Its tags, all of them.
    pub tags: std::collections::BTreeMap<String, String>,
    /// What it is to be.
    pub spec: Spec,
}

impl<'de> Deserialize<'de> for Manifest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            kind: Kind,
            name: String,
            #[serde(default)]
            tags: std::collections::BTreeMap<String, String>,
            #[serde(default)]
            spec: serde_json::Map<String, Value>,
        }
        let Written { kind, name, tags, spec } = Written::deserialize(deserializer)?;
        let spec = Spec::from_value(kind, Value::Object(spec))
            .map_err(|error| D::Error::custom(format_args!("{kind} \"{name}\": spec: {error}")))?;
        Ok(Self { kind, name, tags, spec })
    }
}
