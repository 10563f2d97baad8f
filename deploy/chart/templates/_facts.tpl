{{/*
What follows from the kinds and their compositions: `leasehold rbac` and `leasehold policies` say the same of the same files, and
tests/it/chart.rs compares the two. A fact of many texts is a dict, so that each is in it once; its keys are the texts.
*/}}

{{/* The plural as English has it, of a kind. */}}
{{- define "leasehold.plural" -}}
{{- $word := lower . -}}
{{- if has $word (list "endpoints" "endpointslices") }}{{ $word }}
{{- else if eq $word "nodemetrics" }}nodes
{{- else if eq $word "podmetrics" }}pods
{{- else if regexMatch "(s|x|z|ch|sh)$" $word }}{{ $word }}es
{{- else if regexMatch "[^aeiou]y$" $word }}{{ trimSuffix "y" $word }}ies
{{- else }}{{ $word }}s
{{- end -}}
{{- end }}

{{/* group/plural of something with apiVersion and kind; the plural may be said as `plural` or `resource`. */}}
{{- define "leasehold.resource" -}}
{{- contains "/" .apiVersion | ternary (splitList "/" .apiVersion | first) "" -}}
/{{ .plural | default .resource | default (include "leasehold.plural" .kind) }}
{{- end }}

{{/* Whether Pods may have a power that others lack: "true" or nothing. Of a node, and whether an expression may be anything. */}}
{{- define "leasehold.powers" -}}
{{- $computed := .computed -}}
{{- if kindIs "string" .node }}{{ if $computed }}true{{ end }}
{{- else if kindIs "slice" .node }}
{{- range .node }}{{ include "leasehold.powers" (dict "node" . "computed" $computed) }}{{ end }}
{{- else if kindIs "map" .node }}
{{- range $key, $value := .node }}
{{- $isPower := has $key (list "serviceAccountName" "serviceAccount" "hostNetwork" "hostPID" "hostIPC" "hostPath" "privileged" "add") }}
{{- $isOff := and (kindIs "bool" $value) (not $value) }}
{{- if and $isPower (not $isOff) }}true{{ end }}
{{- $holds := has $key (list "containers" "initContainers" "volumes" "securityContext" "capabilities") }}
{{- include "leasehold.powers" (dict "node" $value "computed" $holds) }}
{{- end }}
{{- end -}}
{{- end }}

{{/* Whether a template makes Pods with a power: "true" or nothing. */}}
{{- define "leasehold.powerful" -}}
{{- $of := printf "%s %s" (contains "/" .apiVersion | ternary (splitList "/" .apiVersion | first) "") .kind }}
{{- $path := list }}
{{- if eq $of " Pod" }}{{ $path = list "spec" }}
{{- else if eq $of "batch CronJob" }}{{ $path = list "spec" "jobTemplate" "spec" "template" "spec" }}
{{- else if has $of (list "apps Deployment" "apps StatefulSet" "apps DaemonSet" "apps ReplicaSet" "batch Job" " ReplicationController") }}
{{- $path = list "spec" "template" "spec" }}
{{- end }}
{{- $node := . }}
{{- range $path }}
{{- $node = kindIs "map" $node | ternary (get (kindIs "map" $node | ternary $node dict) .) "" }}
{{- end }}
{{- if $path }}{{ include "leasehold.powers" (dict "node" $node "computed" true) }}{{ end }}
{{- end }}

{{/*
The accounts by name, each with its facts: JSON.
  access    verb|group|resource|name     what its kinds need
  kinds     group/plural                 its kinds           shards  names of their Leases     owners  "group kind"
  roles     Kind/name                    roles that it gives away
  made      group/plural                 types of children   loose  of which some stand elsewhere than in namespaces that are made
  adopts    group/plural                 types that it may take over
  program   whether a kind of it is compiled in
  powerful  whether its Pods may have a power
*/}}
{{- define "leasehold.accounts" -}}
{{- $accounts := dict }}
{{- $builtin := .Files.Get "files/builtin.yaml" | fromYaml }}
{{- $compositions := include "leasehold.compositions" . | fromJson }}
{{- range $kind := include "leasehold.kinds" . | fromJsonArray }}
{{- $name := $kind.serviceAccount }}
{{- if not (hasKey $accounts $name) }}
{{- $_ := set $accounts $name (dict "access" dict "kinds" dict "shards" dict "owners" dict "roles" dict "made" dict "loose" dict "adopts" dict "program" false "powerful" false) }}
{{- end }}
{{- $account := get $accounts $name }}
{{- $access := $account.access }}
{{- $own := include "leasehold.resource" $kind }}
{{- $group := splitList "/" $own | first }}
{{- $plural := splitList "/" $own | last }}
{{- $_ := set $account.kinds $own true }}
{{- $_ := set $account.shards (include "leasehold.shard" (dict "root" $ "kind" $kind)) true }}
{{- $_ := set $account.owners (printf "%s %s" $group $kind.kind) true }}
{{- range list "list" "watch" }}{{ $_ := set $access (printf "%s|%s|%s|" . $group $plural) true }}{{ end }}
{{- range list "create" "patch" }}{{ $_ := set $access (printf "%s|events.k8s.io|events|" .) true }}{{ end }}
{{- with dig "reconciler" "builtin" "" $kind }}
{{- $_ := set $account "program" true }}
{{- range get $builtin.needs . }}{{ $_ := set $access . true }}{{ end }}
{{- end }}
{{- with dig "reconciler" "compose" "" $kind }}
{{- $file := . }}
{{- $composition := get $compositions $file | fromYaml }}
{{- if not (kindIs "slice" $composition.children) }}
{{- fail (printf "compositions.%s: it has no list of children%s; leasehold check -f shows what is wrong with a file" (trimSuffix ".yaml" $file) (hasKey $composition "Error" | ternary (printf " (%s)" (get $composition "Error")) "")) }}
{{- end }}
{{- range list "get||" "patch||" "update|/status|" "update|/finalizers|" }}
{{- $part := splitList "|" . }}
{{- $_ := set $access (printf "%s|%s|%s%s|" (index $part 0) $group $plural (index $part 1)) true }}
{{- end }}
{{- $spaces := dict }}
{{- range $child := $composition.children }}
{{- $template := kindIs "map" $child | ternary (get (kindIs "map" $child | ternary $child dict) "template") "" }}
{{- if not (and (kindIs "map" $template) (kindIs "string" (get $template "apiVersion")) (kindIs "string" (get $template "kind"))) }}
{{- fail (printf "compositions.%s: a child has no template with apiVersion and kind; leasehold check -f shows what is wrong with a file" (trimSuffix ".yaml" $file)) }}
{{- end }}
{{- if and (eq $template.apiVersion "v1") (eq $template.kind "Namespace") (not $child.includeWhen) (not $child.forEach) }}
{{- $_ := set $spaces (dig "metadata" "name" "" $template | toString) true }}
{{- end }}
{{- end }}
{{- range $child := $composition.children }}
{{- $template := $child.template }}
{{- $of := include "leasehold.resource" (dict "apiVersion" $template.apiVersion "kind" $template.kind "resource" $child.resource) }}
{{- range list "get" "list" "watch" "create" "patch" "delete" }}{{ $_ := set $access (printf "%s|%s|" . (replace "/" "|" $of)) true }}{{ end }}
{{- $_ := set $account.made $of true }}
{{- if not (hasKey $spaces (dig "metadata" "namespace" "" $template | toString)) }}{{ $_ := set $account.loose $of true }}{{ end }}
{{- if ne ($child.adopt | default "Never") "Never" }}{{ $_ := set $account.adopts $of true }}{{ end }}
{{- if hasPrefix "rbac.authorization.k8s.io/" $template.apiVersion }}
{{- if has $template.kind (list "RoleBinding" "ClusterRoleBinding") }}
{{- $isRole := eq (dig "roleRef" "kind" "" $template) "Role" }}
{{- $role := dig "roleRef" "name" "" $template | toString }}
{{- $_ := set $access (printf "bind|rbac.authorization.k8s.io|%s|%s" ($isRole | ternary "roles" "clusterroles") $role) true }}
{{- $_ := set $account.roles (printf "%s/%s" ($isRole | ternary "Role" "ClusterRole") $role) true }}
{{- else if has $template.kind (list "Role" "ClusterRole") }}
{{- $_ := set $access (printf "escalate|rbac.authorization.k8s.io|%ss|" (lower $template.kind)) true }}
{{- end }}
{{- end }}
{{- if include "leasehold.powerful" $template }}{{ $_ := set $account "powerful" true }}{{ end }}
{{- end }}
{{- range $composition.related }}
{{- $of := include "leasehold.resource" . | replace "/" "|" }}
{{- range list "list" "watch" }}{{ $_ := set $access (printf "%s|%s|" . $of) true }}{{ end }}
{{- end }}
{{- range dig "admission" "lookups" list $composition }}
{{- $_ := set $access (printf "get|%s|" (include "leasehold.resource" . | replace "/" "|")) true }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $accounts }}
{{- end }}

{{/* Name of the Lease of a kind. */}}
{{- define "leasehold.shard" -}}
{{- $config := .root.Values.configuration }}
{{- $group := contains "/" .kind.apiVersion | ternary (printf ".%s" (splitList "/" .kind.apiVersion | first)) "" }}
{{- if eq (dig "election" "mode" "PerKind" $config) "Single" -}}
{{ dig "election" "lease" "name" (include "leasehold.instance" .root) $config }}
{{- else -}}
{{ .kind.group | default (dig "lease" "name" (lower (printf "%s%s" .kind.kind $group)) .kind) }}
{{- end }}
{{- end }}

{{/* Names of locks that are ConfigMaps: JSON. */}}
{{- define "leasehold.locks" -}}
{{- $locks := dict }}
{{- $of := dig "election" "lock" "Lease" .Values.configuration }}
{{- range $kind := include "leasehold.kinds" . | fromJsonArray }}
{{- if ne ($kind.lock | default $of) "Lease" }}
{{- $_ := set $locks (include "leasehold.shard" (dict "root" $ "kind" $kind)) true }}
{{- end }}
{{- end }}
{{- keys $locks | sortAlpha | toJson }}
{{- end }}

{{/* Rules of a role for accesses, of which those of a resource are one rule: YAML. */}}
{{- define "leasehold.rules" -}}
{{- $verbs := dict }}
{{- range $access := keys . | sortAlpha }}
{{- $part := splitList "|" $access }}
{{- $of := slice $part 1 | join "|" }}
{{- $_ := set $verbs $of (append (get $verbs $of | default list) (first $part)) }}
{{- end }}
{{- $rules := list }}
{{- range $of, $all := $verbs }}
{{- $part := splitList "|" $of }}
{{- $rule := dict "apiGroups" (list (index $part 0)) "resources" (list (index $part 1)) "verbs" $all }}
{{- with index $part 2 }}{{ $rule = set $rule "resourceNames" (list .) }}{{ end }}
{{- $rules = append $rules $rule }}
{{- end }}
{{- toYaml $rules }}
{{- end }}

{{/* Accounts of kinds with this compiled-in reconciler: JSON. */}}
{{- define "leasehold.accountsOf" -}}
{{- $found := dict }}
{{- range $kind := include "leasehold.kinds" .root | fromJsonArray }}
{{- if eq (dig "reconciler" "builtin" "" $kind) $.builtin }}{{ $_ := set $found $kind.serviceAccount true }}{{ end }}
{{- end }}
{{- keys $found | sortAlpha | toJson }}
{{- end }}

{{/* A list of CEL. */}}
{{- define "leasehold.list" -}}
[{{ range $index, $text := . }}{{ if $index }}, {{ end }}'{{ $text }}'{{ end }}]
{{- end }}
