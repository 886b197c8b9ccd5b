{{/* What no schema can say: each complaint begins with the value that is wrong. All are said at once. */}}
{{- define "envoy-cimd.checks" -}}
{{- $v := .Values }}
{{- $wrong := list }}
{{- $isService := eq $v.mode "service" }}
{{- $isSidecar := eq $v.mode "sidecar" }}
{{- $isGateway := eq $v.mode "envoy-gateway" }}
{{- $hasChoreographer := $v.choreographer.enabled }}
{{- if not $v.image.repository }}
{{- $wrong = append $wrong "image.repository: say where you pushed the image" }}
{{- end }}
{{- if and $isService (not $v.tls.allowPeers) }}
{{- $wrong = append $wrong
  "tls.allowPeers: name who may call, as Envoy's certificate does; whoever is let in may have every user's token" }}
{{- end }}
{{- if and (include "envoy-cimd.serveHasTls" .) (not $v.tls.existingSecret) }}
{{- $wrong = append $wrong "tls.existingSecret: name the Secret with tls.crt, tls.key and ca.crt" }}
{{- end }}
{{- if and $hasChoreographer (not $v.choreographer.tls.existingSecret) }}
{{- $wrong = append $wrong "choreographer.tls.existingSecret: name the Secret with tls.crt, tls.key and ca.crt" }}
{{- end }}
{{- if and $hasChoreographer (not $v.choreographer.tls.allowPeers) }}
{{- $wrong = append $wrong
  "choreographer.tls.allowPeers: name who may call, which is whom the certificate of tls.existingSecret is for" }}
{{- end }}
{{- if and $v.tokens.enabled (not $v.tokens.allowPeers) }}
{{- $wrong = append $wrong "tokens.allowPeers: name who may have every user's token" }}
{{- end }}
{{- if and $v.tokens.enabled $isGateway (not $hasChoreographer) }}
{{- $wrong = append $wrong
  "tokens.enabled: in mode envoy-gateway, choreographer.enabled must be true; Envoy's own pods hand no tokens out" }}
{{- end }}
{{- if and $v.tokens.allowPeers (not $v.tokens.enabled) }}
{{- $wrong = append $wrong "tokens.allowPeers: nobody is let in while tokens.enabled is false" }}
{{- end }}
{{- if and (eq $v.store.type "redis") (not $v.store.existingSecret) }}
{{- $wrong = append $wrong "store.existingSecret: name the Secret with the URL of Redis" }}
{{- end }}
{{- if eq $v.store.type "file" }}
{{- if and $hasChoreographer (gt (int $v.choreographer.replicas) 1) }}
{{- $wrong = append $wrong
  (printf "choreographer.replicas: a file store (store.type) is for one process, not %d; use redis"
    (int $v.choreographer.replicas)) }}
{{- end }}
{{- if and (not $hasChoreographer) $isGateway }}
{{- $wrong = append $wrong
  "store.type: a file store is for one process, and Envoy Gateway says how many there are; use redis" }}
{{- else if and (not $hasChoreographer) (gt (int $v.replicas) 1) }}
{{- $wrong = append $wrong
  (printf "replicas: a file store (store.type) is for one process, not %d; use redis" (int $v.replicas)) }}
{{- end }}
{{- end }}
{{- if and $v.extraCa.existingSecret $v.extraCa.existingConfigMap }}
{{- $wrong = append $wrong "extraCa.existingSecret, extraCa.existingConfigMap: name one of them" }}
{{- end }}
{{- range $index, $client := $v.clients }}
{{- if ne (hasKey $client "existingSecret") (hasKey $client "key") }}
{{- $wrong = append $wrong (printf "clients[%d].existingSecret, clients[%d].key: they go together" $index $index) }}
{{- end }}
{{- end }}
{{- if $isSidecar }}
{{- if eq (empty $v.envoy.config.existingConfigMap) (empty $v.envoy.config.existingSecret) }}
{{- $wrong = append $wrong
  "envoy.config.existingConfigMap, envoy.config.existingSecret: name one of them, with what `envoy-config` printed" }}
{{- end }}
{{- if not $v.envoy.tls.existingSecret }}
{{- $wrong = append $wrong
  "envoy.tls.existingSecret: name the Secret with tls.crt and tls.key for the hosts of all routes" }}
{{- end }}
{{- end }}
{{- if $isGateway }}
{{- if not $v.envoyGateway.namespace }}
{{- $wrong = append $wrong "envoyGateway.namespace: name the Gateway's namespace" }}
{{- end }}
{{- if $v.serviceMonitor.enabled }}
{{- $wrong = append $wrong
  "serviceMonitor.enabled: in mode envoy-gateway the pods are Envoy Gateway's; monitor those" }}
{{- end }}
{{- end }}
{{- if $v.networkPolicy.enabled }}
{{- if and (not $v.networkPolicy.envoys) (or $isService (and $isGateway $hasChoreographer)) }}
{{- $wrong = append $wrong "networkPolicy.envoys: name where Envoy's pods are, or set networkPolicy.enabled to false" }}
{{- end }}
{{- if and (eq $v.store.type "redis") (not $v.networkPolicy.redis) (or $hasChoreographer (not $isGateway)) }}
{{- $wrong = append $wrong "networkPolicy.redis: name where Redis is, or set networkPolicy.enabled to false" }}
{{- end }}
{{- if and $v.tokens.enabled (not $v.networkPolicy.tokens) }}
{{- $wrong = append $wrong
  "networkPolicy.tokens: name where those are who get tokens, or set networkPolicy.enabled to false" }}
{{- end }}
{{- end }}
{{- $components := include "envoy-cimd.components" . | fromJson }}
{{- $most := $v.podDisruptionBudget.maxUnavailable }}
{{- if and $v.podDisruptionBudget.enabled (not (kindIs "string" $most)) }}
{{- range $component, $replicas := $components }}
{{- if and (gt (int $replicas) 1) (ge (int $most) (int $replicas)) }}
{{- $wrong = append $wrong
  (printf "podDisruptionBudget.maxUnavailable: %d may stop all replicas of %s at once" (int $most) $component) }}
{{- end }}
{{- end }}
{{- end }}
{{- if $v.terminationGracePeriodSeconds }}
{{- range $component, $_ := $components }}
{{- $least := add (include "envoy-cimd.stop" (dict "root" $ "component" $component) | int) 7 }}
{{- if lt (int $v.terminationGracePeriodSeconds) (int $least) }}
{{- $wrong = append $wrong
  (printf "terminationGracePeriodSeconds: %s is killed before it has stopped: %d at least, not %d; %s"
    $component $least (int $v.terminationGracePeriodSeconds)
    "that is config.drain_delay, config.drain_timeout, envoy.drainSeconds in mode sidecar, and 7 s") }}
{{- end }}
{{- end }}
{{- end }}
{{- $owned := regexSplit "\\s+" (include "envoy-cimd.owned" .) -1 }}
{{- range $of, $values := dict "" $v "choreographer." $v.choreographer }}
{{- range $values.extraArgs }}
{{- $key := . | trimPrefix "--" | splitList "=" | first | replace "-" "_" }}
{{- if has $key $owned }}
{{- $wrong = append $wrong (printf "%sextraArgs: --%s is the chart's to set" $of ($key | replace "_" "-")) }}
{{- end }}
{{- end }}
{{- range $values.extraEnv }}
{{- if hasPrefix "ENVOY_CIMD_" .name }}
{{- $wrong = append $wrong
  (printf "%sextraEnv: %s is a setting, which belongs into config; the store's URL, into a Secret" $of .name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if $wrong }}
{{- fail (printf "\n%s" (join "\n" $wrong)) }}
{{- end }}
{{- end }}
